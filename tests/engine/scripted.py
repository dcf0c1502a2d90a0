"""Checkpoints whose text is known: after each token of a script comes the next one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

HEAD_DIM = 8


def word_tokenizer(pieces: Sequence[str], special: Sequence[str] = ()) -> Tokenizer:
    """Each piece is a token, ids in this order, the specials last; the longest piece counts."""
    ids = {piece: i for i, piece in enumerate([*pieces, *special])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=pieces[0]))
    longest = sorted(ids, key=len, reverse=True)
    pattern = Regex("|".join(map(re.escape, longest)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    return tokenizer


def scripted_weights(size: int, script: Sequence[int]) -> dict[str, Tensor]:
    """One layer that writes nothing; each token embeds as its own axis, the head moves it on."""
    width = -(-size // HEAD_DIM) * HEAD_DIM
    head = torch.zeros(size, width)
    for token, following in pairwise(script):
        head[following, token] = 1
    layer = "model.layers.0."
    weights = {
        "model.embed_tokens.weight": torch.eye(size, width),
        "lm_head.weight": head,
        "model.norm.weight": torch.ones(width),
        f"{layer}input_layernorm.weight": torch.ones(width),
        f"{layer}post_attention_layernorm.weight": torch.ones(width),
    }
    narrow = {"k_proj", "v_proj"}
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        rows = HEAD_DIM if name in narrow else width
        weights[f"{layer}self_attn.{name}.weight"] = torch.zeros(rows, width)
    for name in ("gate_proj", "up_proj"):
        weights[f"{layer}mlp.{name}.weight"] = torch.zeros(HEAD_DIM, width)
    weights[f"{layer}mlp.down_proj.weight"] = torch.zeros(width, HEAD_DIM)
    return weights


def scripted_checkpoint(
    folder: Path,
    pieces: Sequence[str],
    script: Sequence[str],
    special: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    **files: Any,
) -> Path:
    """A folder with such a model and its tokenizer; pieces that the script lacks lead to the first.

    ``files``: further JSON files by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = word_tokenizer(pieces, special)
    tokenizer.save(str(folder / "tokenizer.json"))
    size = len(pieces) + len(special)
    width = -(-size // HEAD_DIM) * HEAD_DIM
    shape = {
        "vocab_size": size,
        "hidden_size": width,
        "intermediate_size": HEAD_DIM,
        "num_hidden_layers": 1,
        "num_attention_heads": width // HEAD_DIM,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128,
        "rope_theta": 1e4,
        "architectures": ["LlamaForCausalLM"],
    }
    for name, content in {"config": shape | dict(config or {}), **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    ids = [tokenizer.token_to_id(token) for token in script]
    save_file(scripted_weights(size, ids), folder / "model.safetensors", {"format": "pt"})
    return folder
