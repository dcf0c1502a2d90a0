"""Quantised weights: kept packed, dequantised for each matrix product. Rows are outputs.

One form for each kind of number, whatever checkpoint it came from; the loader repacks once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fp8Weight:
    """fp8 numbers with a scale for each block of them: ``codes * scale``.

    codes: float8_e4m3fn [out, in].
    scale: fp32 [ceil(out / block[0]), ceil(in / block[1])].
    block: rows and columns that share a scale: (1, in) is per channel, (out, in) per tensor.
    """

    codes: Tensor
    scale: Tensor
    block: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix, (out, in)."""
        return self.codes.shape[0], self.codes.shape[1]

    def tensors(self) -> tuple[Tensor, ...]:
        """What is kept in memory."""
        return self.codes, self.scale

    def to(self, device: torch.device) -> Fp8Weight:
        """The same on a device."""
        return replace(self, codes=self.codes.to(device), scale=self.scale.to(device))

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """The matrix, [out, in]; the product is taken in fp32 and rounded once."""
        out, columns = self.shape
        scale = self.scale.repeat_interleave(self.block[0], 0)[:out]
        if self.scale.shape[1] > 1:
            scale = scale.repeat_interleave(self.block[1], 1)[:, :columns]
        return (self.codes.float() * scale).to(dtype)


@dataclass(frozen=True)
class IntWeight:
    """Unsigned integers of 4 or 8 bits, in groups along a row: ``(code - zero) * scale``.

    codes: uint8 [out, in * bits / 8]; of two in a byte, the low half comes first.
    scale: float [out, groups].
    zero: int16 [out, groups]; some formats reach one beyond the codes.
    bits: 4 or 8.
    group_of: int32 [in], the group of each column; None where groups are equal runs of columns.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    group_of: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix, (out, in)."""
        return self.codes.shape[0], self.codes.shape[1] * 8 // self.bits

    def tensors(self) -> tuple[Tensor, ...]:
        """What is kept in memory."""
        kept = (self.codes, self.scale, self.zero)
        return kept if self.group_of is None else (*kept, self.group_of)

    def to(self, device: torch.device) -> IntWeight:
        """The same on a device."""
        codes, scale, zero, *rest = (t.to(device) for t in self.tensors())
        return IntWeight(codes, scale, zero, self.bits, *rest)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """The matrix, [out, in]; the product is taken in fp32 and rounded once."""
        out, columns = self.shape
        codes = self.codes
        if self.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], -1).view(out, columns)
        scale, zero = self.scale.float(), self.zero.float()
        if self.group_of is None:
            values = codes.view(out, scale.shape[1], -1).float() - zero[..., None]
            return (values * scale[..., None]).view(out, columns).to(dtype)
        index = self.group_of.long()
        return ((codes.float() - zero[:, index]) * scale[:, index]).to(dtype)


@dataclass(frozen=True)
class StackedWeight:
    """Matrices of one input, one above the other, each quantised in its own way or not at all."""

    parts: tuple[Tensor | Fp8Weight | IntWeight, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the whole matrix, (out, in)."""
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    def tensors(self) -> tuple[Tensor, ...]:
        """What is kept in memory."""
        return tuple(t for part in self.parts for t in weight_tensors(part))

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """The matrix, [out, in]."""
        return torch.cat(
            [p.to(dtype) if isinstance(p, Tensor) else p.dequantise(dtype) for p in self.parts]
        )


PackedWeight = Fp8Weight | IntWeight | StackedWeight
Weight = Tensor | PackedWeight


def weight_tensors(weight: Weight) -> tuple[Tensor, ...]:
    """What a weight keeps in memory."""
    return (weight,) if isinstance(weight, Tensor) else weight.tensors()


def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """``x @ weight^T + bias`` in x's dtype: dequantise, then multiply.

    Args:
        x: [rows, in].
        weight: [out, in].
        bias: [out].
    """
    return torch.nn.functional.linear(x, weight.dequantise(x.dtype), bias)
