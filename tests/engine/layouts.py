"""Checkpoint folders as people have them on disk, made small: tokenizers, templates, weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers.tokenization_utils_base import generate_merges

from .hard_text import HARD
from .test_quantised import CASES

CORPUS = [text for text in HARD if text.strip()] * 3 + ["the quick brown fox jumps over it"] * 9
TURN = {"qwen": "<|im_end|>", "llama3": "<|eot_id|>", "pieces": "</s>"}  # ends an answer
TEMPLATE = (
    "{{ bos_token }}{% if tools %}<tools>{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}\n{{ m['content'] }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}\n{% endif %}"
)
OTHER_TEMPLATE = (
    "{% for t in tools or [] %}{{ t['function']['name'] }};{% endfor %}"
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
)
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
    "llama": {},
    "mistral": {"sliding_window": None, "head_dim": 16},
}


@dataclass(frozen=True)
class Layout:
    """What a folder holds.

    family: transformers' name of the architecture.
    tokenizer: "qwen" and "llama3" are byte-level, "pieces" is sentencepiece.
    files: the tokenizer's: "json", "model" or "both".
    template: where the chat template stands.
    weights: "single", "sharded", or a format of ``test_quantised.CASES``.
    end: the file that names the token that ends an answer.
    """

    family: str
    tokenizer: str
    files: str = "json"
    template: str = "text in tokenizer_config.json"
    weights: str = "single"
    end: str = "config.json"


def save_tokenizer(kind: str, folder: Path) -> None:
    """As transformers saves it, with no chat template; of pieces the tokenizer.model too.

    The pieces' tokenizer.json is made as transformers makes it of a tokenizer.model.
    """
    if kind == "pieces":
        _save_pieces(folder)
    elif kind == "qwen":
        trained = json.loads(_trained().to_str())["model"]
        merges = [tuple(pair) for pair in trained["merges"]]
        specials = ["<|im_start|>", "<|im_end|>"]
        Qwen2Tokenizer(
            trained["vocab"], merges, eos_token="<|im_end|>", extra_special_tokens=specials
        ).save_pretrained(folder)
    else:
        specials = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
        PreTrainedTokenizerFast(tokenizer_object=_trained(), **specials).save_pretrained(folder)


def _trained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _save_pieces(folder: Path) -> None:
    (folder / "text").write_text("\n".join(t.replace("\n", " ").replace("\0", "") for t in CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=520,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    for name in ("text", "tokenizer.vocab"):
        (folder / name).unlink()
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    pieces = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    LlamaTokenizer(pieces, generate_merges(pieces), add_bos_token=True).save_pretrained(folder)
    edit(folder / "tokenizer_config.json", legacy=False)  # published folders say it


@torch.no_grad()
def save_model(layout: Layout, folder: Path, prompt: list[int], size: int, end: int) -> Any:
    """A random model whose greedy answer to ``prompt`` ends soon; returned in fp32, dequantised."""
    torch.manual_seed(5)
    shape = {
        "vocab_size": size,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        **dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id")),
    }
    config = AutoConfig.for_model(layout.family, **(shape | FAMILIES[layout.family]))
    model = AutoModelForCausalLM.from_config(config).float().eval()
    plain = layout.weights in ("single", "sharded")
    stored = {} if plain else _quantise(model, layout.weights)
    _end_soon(model, prompt, end)
    model.save_pretrained(folder, max_shard_size="60KB" if layout.weights == "sharded" else "1GB")
    if stored:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        for name in {name.rpartition(".")[0] for name in stored}:
            del tensors[f"{name}.weight"]
        save_file(tensors | stored, path, {"format": "pt"})
        edit(folder / "config.json", quantization_config=CASES[layout.weights][1])
    return model


def _quantise(model: Any, form: str) -> dict[str, torch.Tensor]:
    """The packed tensors of all linear layers; the model gets what they stand for."""
    rng, stored = np.random.default_rng(3), dict[str, torch.Tensor]()
    for name, layer in model.model.layers.named_modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data, tensors = CASES[form][0](rng, *layer.weight.shape)
            stored |= {f"model.layers.{name}.{suffix}": t for suffix, t in tensors.items()}
    return stored


def _end_soon(model: Any, prompt: list[int], end: int) -> None:
    """Raise the end's logit where the answer has five tokens or so, until it is written there."""
    text = [*prompt, *greedy(model, prompt, 5, [])]
    hidden = model.model(torch.tensor([text])).last_hidden_state[0, -1]
    head = model.lm_head.weight
    for factor in range(1, 40):
        head[end] = hidden * factor / 10
        answer = greedy(model, prompt, 24, [end])
        if answer[-1] == end:
            assert len(answer) > 1, "the answer is empty"
            return
    raise AssertionError("the answer does not end")


@torch.no_grad()
def greedy(model: Any, prompt: list[int], most: int, ends: list[int]) -> list[int]:
    """At most ``most`` ids, up to and with one of ``ends``, each from scratch."""
    text = list(prompt)
    while len(text) < len(prompt) + most and not (len(text) > len(prompt) and text[-1] in ends):
        text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(prompt) :]


def edit(path: Path, **changes: Any) -> None:
    """Change the keys of a JSON file; None removes one."""
    raw = json.loads(path.read_text()) if path.is_file() else {}
    kept = {key: value for key, value in (raw | changes).items() if value is not None}
    path.write_text(json.dumps(kept))


def lay_out(layout: Layout, folder: Path, tokenizer: Path, weights: Path) -> Path:
    """A folder of this layout from a saved tokenizer and saved weights."""
    shutil.copytree(weights, folder)
    dropped = {"json": "tokenizer.model", "model": "tokenizer.json", "both": ""}[layout.files]
    for path in tokenizer.iterdir():
        if path.name != dropped:
            shutil.copy(path, folder)
    _put_template(layout.template, folder)
    end = TURN[layout.tokenizer]
    index = AutoTokenizer.from_pretrained(tokenizer).convert_tokens_to_ids(end)
    if layout.end in ("config.json", "generation_config.json"):
        edit(folder / layout.end, eos_token_id=index)
    return folder


def _put_template(place: str, folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": OTHER_TEMPLATE}]
    if place == "text in tokenizer_config.json":
        edit(config, chat_template=TEMPLATE)
    elif place == "list in tokenizer_config.json":
        edit(config, chat_template=[*named, {"name": "default", "template": TEMPLATE}])
    elif place == "chat_template.json":
        edit(folder / place, chat_template=TEMPLATE)
    elif place != "none":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    if place == "chat_template.jinja before tokenizer_config.json":
        edit(config, chat_template=OTHER_TEMPLATE)
    if place == "additional_chat_templates":
        (folder / place).mkdir()
        (folder / place / "tool_use.jinja").write_text(OTHER_TEMPLATE)
