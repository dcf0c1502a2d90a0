"""A pair over bytes whose greedy text is known: each token of a ring follows the one before it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests.engine.conftest import LARGE, SMALL, random_model

THINKS = ("<think>", "a", "b", "</think>", "x", "y", "\n\n", "z", "<|im_end|>")
WRITES = ("é", "\n\n", "😁", "c", "\u2028", "d", "<|im_end|>")
ADDED = {"<think>": False, "</think>": False, "\n\n": False}
SPECIAL = ("<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for t in tools or [] %}<|im_start|>tool {{ t.function.name }}<|im_end|>\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.arguments.items() | list | length }}]"
    "{% endfor %}<|im_end|>\n{% if m.content == 'refuse' %}"
    "{{ raise_exception('this is refused') }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking %}<think>{% endif %}{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token; a few texts and two special tokens are added."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ADDED])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def write_pair(folder: Path, ring: Sequence[str], ends: bool = True) -> tuple[Path, Path]:
    """Two checkpoints that write ``ring`` after any token outside it, and end there.

    Attention and MLP write nothing; each token of the ring has an axis, all others share the first.
    """
    tokenizer = byte_tokenizer()
    ids = [i for text in ring for i in tokenizer.encode(text).ids]
    assert len(set(ids)) == len(ids), "a token of the ring has one that follows it"
    size, end = tokenizer.get_vocab_size(), tokenizer.token_to_id("<|im_end|>")
    paths = []
    for role, shape in (("small", {**SMALL, "tied": False}), ("large", LARGE)):
        model = random_model(1, **{**shape, "vocab": size})
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "o_proj" in name or "down_proj" in name or "embed" in name or "head" in name:
                    weight.zero_()
            model.model.norm.weight.fill_(1.0)
            model.model.embed_tokens.weight[:, 0] = 1.0
            for axis, token in enumerate(ids, 1):
                model.model.embed_tokens.weight[token] = 0.0
                model.model.embed_tokens.weight[token, axis] = 1.0
            for axis, token in enumerate(ids):
                model.lm_head.weight[token, axis] = 4.0
        path = folder / role
        model.save_pretrained(path)
        tokenizer.save(str(path / "tokenizer.json"))
        (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
        config = json.loads((path / "config.json").read_text())
        config["eos_token_id"] = end if ends else None
        (path / "config.json").write_text(json.dumps(config))
        (path / "generation_config.json").write_text(
            json.dumps({"eos_token_id": end if ends else None})
        )
        paths.append(path)
    return paths[0], paths[1]
