"""The tensors of a GGUF file, dequantised, under their names in checkpoint folders."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.errors import SteerError
from engine.gguf.file import GgufFile, short
from engine.gguf.formats import dequantised
from engine.gguf.header import TensorEntry

ROPE_FACTORS = "rope_freqs.weight"  # divisors of Llama 3.1's frequencies; read with the shape
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAME = re.compile(r"(?:blk\.(?P<layer>0|[1-9]\d*)\.)?(?P<stem>\w+)\.(?P<kind>weight|bias)")
_PIECE = 2**24  # numbers dequantised at once


def folder_name(name: str) -> str | None:
    """A tensor's name in a checkpoint folder; None for an unknown tensor."""
    match = _NAME.fullmatch(name)
    if not match:
        return None
    known = _TOP if match["layer"] is None else _LAYER
    if match["stem"] not in known:
        return None
    prefix = "" if match["layer"] is None else f"model.layers.{match['layer']}."
    return f"{prefix}{known[match['stem']]}.{match['kind']}"


class GgufTensors:
    """The same interface as :class:`engine.models.shards.Shards`, over GGUF files.

    All numbers are fp32, whatever their format in the file.
    """

    source = "its metadata"  # where the expected shapes come from, for messages

    def __init__(self, file: GgufFile, config: ModelConfig) -> None:
        """``config``: the shape of the same file. SteerError on an unknown tensor."""
        self.folder = file.path
        self._entries = dict[str, TensorEntry]()
        for name, entry in file.tensors.items():
            if name == ROPE_FACTORS:
                continue
            if folder_name(name) is None:
                raise SteerError(f"{entry.path}: unexpected tensor {short(name)}")
            self._entries[str(folder_name(name))] = entry
        self._heads: dict[str, int] = {}
        if file.get("general.architecture", str) == "llama":
            self._heads = {"q_proj": config.heads, "k_proj": config.kv_heads}
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.dtypes = dict.fromkeys(self._entries, "F32")

    def __enter__(self) -> GgufTensors:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to close: no file is kept open between two tensors."""

    def path(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._entries[name].path

    def read(self, name: str) -> Tensor:
        """A whole tensor, fp32."""
        return torch.cat(list(self.pieces(name)))

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor's rows in order, fp32, in pieces that bound the memory of a large tensor."""
        entry = self._entries[name]
        parts = name.split(".")
        heads = self._heads.get(parts[-2]) if len(parts) > 1 else None
        if heads:
            yield _halves(dequantised_tensor(entry), heads)
        else:
            yield from _pieces(entry)


def dequantised_tensor(entry: TensorEntry) -> Tensor:
    """A whole tensor, fp32."""
    return torch.cat(list(_pieces(entry)))


def _pieces(entry: TensorEntry) -> Iterator[Tensor]:
    rows, columns = math.prod(entry.shape[:-1]), entry.shape[-1]
    size, step = entry.bytes // rows, max(1, _PIECE // columns)
    try:
        data = np.memmap(entry.path, np.uint8, "r", entry.first, (rows, size))
    except (OSError, ValueError) as error:
        raise SteerError(f"{entry.path}: tensor {entry.name} cannot be read: {error}") from None
    for first in range(0, rows, step):
        # A copy: the map is read-only, and F32 would be a view of it.
        piece = torch.from_numpy(np.array(dequantised(data[first : first + step], entry.format)))
        yield piece.reshape(-1, *entry.shape[1:])


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder a weight's rows (or a bias) from llama.cpp's adjacent rotary pairs to halves."""
    pairs = weight.reshape(heads, len(weight) // heads // 2, 2, -1)
    return pairs.transpose(1, 2).reshape(weight.shape)
