"""Products with quantised weights: slab by slab dequantised, then multiplied."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.types.weights import SLAB, PackedWeight, StackedWeight


def packed_linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """``x @ weight^T + bias`` in x's dtype: slab by slab dequantise, then multiply.

    Args:
        x: [rows, in].
        weight: [out, in].
        bias: [out].
    """
    if isinstance(weight, StackedWeight):
        return weight.product(packed_linear, x, bias)
    out, columns = weight.shape
    x, each = weight.arranged(x), max(1, SLAB // columns)
    y = torch.empty((len(x), out), dtype=x.dtype, device=x.device)
    for first in range(0, out, each):
        last = min(first + each, out)
        piece = None if bias is None else bias[first:last]
        y[:, first:last] = torch.nn.functional.linear(x, weight.slab(first, last, x.dtype), piece)
    return y
