"""A trained model put into a larger one, which starts out knowing what the trained one does."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import Qwen2ForCausalLM

from bench.pair_training.model import initialise
from bench.pair_training.spec import Spec
from bench.tasks.tokenizer import ALPHABET


@torch.no_grad()
def grow(old: Qwen2ForCausalLM, spec: Spec, seed: int) -> Qwen2ForCausalLM:
    """A model of the shape ``spec``, the rest of it drawn from ``seed``.

    New units read at random and write nothing: columns that lead out of new units and into new
    dimensions are zero. Heads keep their number and may become twice as wide: every other frequency
    of the wider head is one of the narrower. New layers attend like the last old one: a second
    look-up of what was looked up is then learned at once, and hardly ever otherwise.
    """
    new = initialise(spec, seed)
    width, extra = old.config.hidden_size, math.sqrt(spec.hidden / old.config.hidden_size)
    rows = new.model.embed_tokens.weight
    rows[: len(ALPHABET)] = 0
    rows[: len(ALPHABET), :width] = old.model.embed_tokens.weight[: len(ALPHABET)]
    new.model.norm.weight[:width] = old.model.norm.weight / extra
    for layer in new.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    depth = len(old.model.layers)
    for place, mine in enumerate(new.model.layers):
        theirs: Any = old.model.layers[min(place, depth - 1)]
        for name in ("input_layernorm", "post_attention_layernorm"):
            getattr(mine, name).weight[:width] = getattr(theirs, name).weight / extra
        if place < depth:
            _grow_units(mine.mlp, theirs.mlp, width)
        _grow_attention(mine.self_attn, theirs.self_attn, width)
    return new


def _grow_units(mine: Any, theirs: Any, width: int) -> None:
    units = theirs.gate_proj.weight.shape[0]
    mine.gate_proj.weight[:units, :width] = theirs.gate_proj.weight
    mine.up_proj.weight[:units, :width] = theirs.up_proj.weight
    mine.down_proj.weight[:width, :units] = theirs.down_proj.weight


def _grow_attention(mine: Any, theirs: Any, width: int) -> None:
    times = mine.head_dim // theirs.head_dim
    heads = theirs.q_proj.weight.shape[0] // theirs.head_dim
    half = torch.arange(theirs.head_dim // 2) * times
    place = torch.cat([half, mine.head_dim // 2 + half])
    where = torch.cat([head * mine.head_dim + place for head in range(heads)])
    mine.k_proj.weight.zero_()
    for name, scale in (("q_proj", math.sqrt(times)), ("k_proj", 1.0), ("v_proj", 1.0)):
        new, old = getattr(mine, name), getattr(theirs, name)
        new.weight[where, :width] = old.weight * scale
        new.bias[where] = old.bias * scale
    mine.o_proj.weight[:width, where] = theirs.o_proj.weight
