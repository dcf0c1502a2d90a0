"""The number formats of GGUF files, and their dequantisation by the ``gguf`` package."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from engine.errors import SteerError

FORMATS = (
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
)


@dataclass(frozen=True)
class Format:
    """A block format: ``block`` numbers of a row are stored in ``size`` bytes."""

    name: str
    block: int
    size: int

    def bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor. ValueError if its rows are not whole blocks."""
        if shape[-1] % self.block:
            raise ValueError(f"rows of {shape[-1]} are not made of {self.name}'s {self.block}")
        return math.prod(shape) // self.block * self.size


def format_of(code: int) -> Format:
    """A format by its code in the file. ValueError on one that is not supported."""
    constants = _package("constants")
    try:
        kind = constants.GGMLQuantizationType(code)
    except ValueError:
        raise ValueError(f"its format {code} is unknown") from None
    if kind.name not in FORMATS:
        raise ValueError(
            f"its format {kind.name} is not supported; supported: {', '.join(FORMATS)}"
        )
    return Format(kind.name, *constants.GGML_QUANT_SIZES[kind])


def dequantised(data: np.ndarray, name: str) -> np.ndarray:
    """Dequantise whole rows.

    Args:
        data: uint8 [rows, bytes of a row], as in the file.
        name: the format's name.

    Returns:
        fp32 [rows, columns].
    """
    kind = _package("constants").GGMLQuantizationType[name]
    numbers: np.ndarray = _package("quants").dequantize(data, kind)
    return numbers


def _package(module: str) -> Any:
    try:
        return import_module(f"gguf.{module}")
    except ImportError:
        raise SteerError(
            "reading GGUF files needs the gguf package: pip install 'steer-engine[gguf]'"
        ) from None
