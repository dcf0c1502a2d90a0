"""Quantised weights: kept packed, dequantised for each matrix product. Rows are outputs.

One form for each kind of number, whatever checkpoint it came from; the loader repacks once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SLAB = 1 << 23  # weights that are dequantised at a time
WORKSPACE = 16 * SLAB  # bytes that a product of many rows takes for that, at most


@dataclass(frozen=True)
class Fp8Weight:
    """fp8 numbers with a scale for each block of them: ``codes * scale``.

    codes: float8_e4m3fn [out, in].
    scale: fp32 [ceil(out / block[0]), ceil(in / block[1])].
    block: rows and columns that share a scale: (1, in) is per channel.
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

    @property
    def by_channel(self) -> bool:
        """Whether each row has one scale."""
        return self.block == (1, self.shape[1])

    def arranged(self, x: Tensor) -> Tensor:
        """x [rows, in] with its columns as they are stored here."""
        return x

    def slab(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Rows of the matrix, columns as stored; the product is taken in fp32, rounded once."""
        rows = torch.arange(first, last, device=self.scale.device) // self.block[0]
        scale = self.scale[rows]
        if self.scale.shape[1] > 1:
            scale = scale.repeat_interleave(self.block[1], 1)[:, : self.shape[1]]
        return self.codes[first:last].float().mul_(scale).to(dtype)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """The matrix, [out, in]."""
        return self.slab(0, self.shape[0], dtype)


@dataclass(frozen=True)
class IntWeight:
    """Unsigned integers of 4 or 8 bits, in groups along a row: ``(code - zero) * scale``.

    codes: uint8 [out, in * bits / 8]; of two in a byte, the low half is of the first half of the
        row, so that runs of columns are runs of bytes.
    scale: float [groups, out].
    zero: int16 [groups, out], some formats reach one beyond the codes; None: 2^(bits - 1), all.
    bits: 4 or 8.
    group: columns that share a scale, in runs; the last may be shorter.
    order: int32 [in], the column of the matrix that is stored at each place; None: in order.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    group: int
    order: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix, (out, in)."""
        return self.codes.shape[0], self.codes.shape[1] * 8 // self.bits

    @property
    def middle(self) -> int:
        """The zero point of symmetric formats."""
        return 1 << (self.bits - 1)

    def tensors(self) -> tuple[Tensor, ...]:
        """What is kept in memory."""
        kept = (self.codes, self.scale, self.zero, self.order)
        return tuple(tensor for tensor in kept if tensor is not None)

    def to(self, device: torch.device) -> IntWeight:
        """The same on a device."""
        zero, order = (None if t is None else t.to(device) for t in (self.zero, self.order))
        return replace(
            self, codes=self.codes.to(device), scale=self.scale.to(device), zero=zero, order=order
        )

    def arranged(self, x: Tensor) -> Tensor:
        """x [rows, in] with its columns as they are stored here."""
        return x if self.order is None else x.index_select(1, self.order)

    def slab(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Rows of the matrix, columns as stored; the product is taken in fp32, rounded once."""
        codes = self.codes[first:last]
        if self.bits == 4:
            codes = torch.cat([codes & 15, codes >> 4], 1)
        values, even = codes.float(), self.scale.shape[0] * self.group == self.shape[1]
        grouped = values.unflatten(1, (-1, self.group)) if even else values
        if self.zero is None:
            grouped.sub_(self.middle)
        else:
            grouped.sub_(self._spread(self.zero[:, first:last], even))
        grouped.mul_(self._spread(self.scale[:, first:last], even))
        return values.to(dtype)

    def _spread(self, of_groups: Tensor, even: bool) -> Tensor:
        """[groups, rows] in fp32, to be broadcast: [rows, groups, 1], or by columns [rows, in]."""
        wide = of_groups.T.float()
        if even:
            return wide[..., None]
        return wide.repeat_interleave(self.group, 1)[:, : self.shape[1]]

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """The matrix, [out, in]."""
        stored = self.slab(0, self.shape[0], dtype)
        if self.order is None:
            return stored
        return torch.empty_like(stored).index_copy_(1, self.order.long(), stored)


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

    def to(self, device: torch.device) -> StackedWeight:
        """The same on a device."""
        return StackedWeight(tuple(part.to(device) for part in self.parts))

    def product(
        self,
        linear: Callable[[Tensor, Fp8Weight | IntWeight, Tensor | None], Tensor],
        x: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """``x @ weight^T + bias``: each part's by ``linear``, side by side; plain ones by torch."""
        sizes = [part.shape[0] for part in self.parts]
        biases = [None] * len(sizes) if bias is None else bias.split(sizes)
        columns = [
            torch.nn.functional.linear(x, part, piece)
            if isinstance(part, Tensor)
            else linear(x, part, piece)
            for part, piece in zip(self.parts, biases, strict=True)
        ]
        return torch.cat(columns, -1)

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


def stack(parts: Sequence[Tensor | Fp8Weight | IntWeight]) -> PackedWeight:
    """Matrices of one input as one weight: of their own kind where they share it."""
    if len(parts) == 1 and not isinstance(parts[0], Tensor):
        return parts[0]
    if all(isinstance(part, Fp8Weight) for part in parts):
        return _stack_fp8([part for part in parts if isinstance(part, Fp8Weight)])
    if all(isinstance(part, IntWeight) for part in parts):
        return _stack_ints([part for part in parts if isinstance(part, IntWeight)])
    return StackedWeight(tuple(parts))


def _stack_fp8(parts: list[Fp8Weight]) -> Fp8Weight | StackedWeight:
    """No block of a part may reach into the next one."""
    block = parts[0].block
    if any(p.block != block for p in parts) or any(p.shape[0] % block[0] for p in parts[:-1]):
        return StackedWeight(tuple(parts))
    # Of bytes, as not every version of Torch joins fp8.
    codes = torch.cat([part.codes.view(torch.uint8) for part in parts])
    return Fp8Weight(
        codes.view(torch.float8_e4m3fn), torch.cat([part.scale for part in parts]), block
    )


def _stack_ints(parts: list[IntWeight]) -> IntWeight | StackedWeight:
    kinds = {(part.bits, part.group, part.scale.dtype) for part in parts}
    first, orders = parts[0].order, [part.order for part in parts]
    alike = all(
        other is first or (other is not None and first is not None and torch.equal(other, first))
        for other in orders
    )
    if len(kinds) > 1 or not alike:
        return StackedWeight(tuple(parts))
    zero = None
    if any(part.zero is not None for part in parts):
        zero = torch.cat([_zeros(part) for part in parts], 1)
    return replace(
        parts[0],
        codes=torch.cat([part.codes for part in parts]),
        scale=torch.cat([part.scale for part in parts], 1),
        zero=zero,
    )


def _zeros(weight: IntWeight) -> Tensor:
    if weight.zero is not None:
        return weight.zero
    return torch.full_like(weight.scale, weight.middle, dtype=torch.int16)
