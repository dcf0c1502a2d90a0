"""Tensors that a checkpoint holds and its model does not need: which of them change nothing."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection

import torch

from engine.errors import SteerError
from engine.models.gguf_tensors import GgufTensors
from engine.models.shards import Shards

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Rotary tables follow from config.json. Scales of activations and of a quantised KV cache have no
# effect, whatever their value: neither is quantised here.
_WITHOUT_EFFECT = re.compile(
    r".*\.(rotary_emb\.(inv_freq|cos_cached|sin_cached)"
    r"|(input|output|act|activation|[qkv]|kv|prob)_(scale|scale_ub|zero_point))"
)
_ROWS = 2**13  # rows of two tables that are compared at once
_log = logging.getLogger(__name__)


def check_leftover(
    shards: Shards | GgufTensors, name: str, expected: Collection[str], tied: bool
) -> None:
    """SteerError, naming file and tensor, unless the model is the same without it.

    Exporters write biases of zeros for layers without bias (AutoGPTQ), zero points of symmetric
    weights (compressed-tensors), and a tied head.

    Args:
        shards: the checkpoint's tensors.
        name: a tensor that is not among ``expected``.
        expected: names of the tensors that the model reads.
        tied: the model's head is its embedding.
    """
    if _WITHOUT_EFFECT.fullmatch(name) or (tied and name in (EMBEDDING, HEAD)):
        return
    layer, _, kind = name.rpartition(".")
    known = layer == "lm_head" or any(each.startswith(f"{layer}.") for each in expected)
    part = {"bias": "bias", "weight_zero_point": "zero points"}.get(kind)
    if not known or part is None:
        raise SteerError(f"{shards.path(name)}: unexpected tensor {name}")
    with shards:
        if bool((shards.read(name).float() != 0).any()):
            raise SteerError(
                f"{shards.path(name)}: tensor {name} is not zero, and this layer has no "
                f"{part} by {shards.source}"
            )


def head_differs(shards: Shards) -> bool:
    """Whether there are an embedding and a head, and they differ: then they are not tied.

    As in transformers, whatever config.json says; a warning (``logging``) says so.
    """
    if not {EMBEDDING, HEAD} <= shards.shapes.keys() or _same(shards):
        return False
    _log.warning(
        "%s: config.json ties the head to the embedding, but the two differ: they stay apart",
        shards.path(HEAD),
    )
    return True


def _same(shards: Shards) -> bool:
    if shards.shapes[EMBEDDING] != shards.shapes[HEAD]:
        return False
    with shards:
        tables = [shards.read(name).split(_ROWS) for name in (EMBEDDING, HEAD)]
        return all(torch.equal(a.float(), b.float()) for a, b in zip(*tables, strict=True))
