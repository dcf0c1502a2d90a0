"""Packed weights, and the matrices that they stand for in fp64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.skinny_gemm import FP8
from kernels.types.weights import Fp8Weight, IntWeight

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter does not round to bf16, it truncates.
ROUNDED = 2.0**-8 if DEVICE == "cuda" else 2.0**-7
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: ROUNDED, torch.float16: 2.0**-11}
interpreted = pytest.mark.skipif(DEVICE == "cuda", reason="watches the interpreter")


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(DEVICE)


def integers(
    n: int, k: int, bits: int, group: int, zeros: bool, shuffled: bool = False, seed: int = 0
) -> tuple[IntWeight, Tensor]:
    """A packed weight, and the matrix that it stands for in fp64, each written out by itself."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**bits, (n, k))
    groups = -(-k // group)
    scale = rng.uniform(0.5, 1.5, (n, groups)).astype(np.float16)
    zero = (
        rng.integers(0, 2**bits + 1, (n, groups))
        if zeros
        else np.full((n, groups), 2 ** (bits - 1))
    )
    order = rng.permutation(k) if shuffled else np.arange(k)
    matrix = np.zeros((n, k))
    for place, column in enumerate(order):
        g = place // group
        matrix[:, column] = (codes[:, place] - zero[:, g]) * scale[:, g].astype(np.float64)
    stored = codes if bits == 8 else codes[:, : k // 2] + 16 * codes[:, k // 2 :]
    weight = IntWeight(
        torch.from_numpy(stored.astype(np.uint8)),
        torch.from_numpy(scale.T.copy()),
        torch.from_numpy(zero.T.astype(np.int16, order="C")) if zeros else None,
        bits,
        group,
        torch.from_numpy(order.astype(np.int32)) if shuffled else None,
    )
    return weight.to(torch.device(DEVICE)), torch.from_numpy(matrix).to(DEVICE)


def blocks(n: int, k: int, rows: int, columns: int, seed: int = 0) -> tuple[Fp8Weight, Tensor]:
    """fp8 with a scale a block, and its matrix."""
    codes = random(n, k, seed=seed).mul(20).to(FP8)
    scale = torch.rand(-(-n // rows), -(-k // columns), device=DEVICE) + 0.5
    spread = scale.double().repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]
    return Fp8Weight(codes, scale, (rows, columns)), codes.double() * spread


def assert_right(found: Tensor, x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> None:
    expected = x.double() @ matrix.T + (0 if bias is None else bias.double())
    # fp32 sums err by a share of what was added, not of what is left after cancellation.
    added = x.double().abs() @ matrix.abs().T + (0 if bias is None else bias.double().abs())
    error = (found.double() - expected).abs()
    assert (error <= 1e-6 * added + ROUNDING[found.dtype] * expected.abs()).all()
