"""Checks of the ops on activations and weights: norms, gated activation, linear layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench.gpu_quick.checks.check import Check, Outputs
from bench.gpu_quick.checks.tensors import Maker, taken
from kernels.ops import Backend, Fp8Weight, IntWeight

EPS = 1e-6
ROWS = 5
_ROUNDED = (2**-7, 1e-3)  # a bf16 result
_NORMED = (2**-6, 1e-3)  # rounded twice: before and after the weight


def norms(make: Maker) -> Iterator[Check]:
    """Checks with and without the residual sum."""
    hidden = make.shape.hidden
    x, residual, weight = make.normal(ROWS, hidden), make.normal(ROWS, hidden), make.normal(hidden)

    def exact(total: Tensor) -> Tensor:
        wide = total.double()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
        return wide * scale * weight.double()

    def plain(rows: Sequence[int]) -> Outputs:
        return (make.backend.rms_norm(taken(x, rows), weight, EPS),)

    def added(rows: Sequence[int]) -> Outputs:
        total = taken(x, rows)
        return make.backend.add_rms_norm(total, taken(residual, rows), weight, EPS), total

    yield Check("norm", "rms_norm", plain, lambda: (exact(x),), ROWS, (_NORMED,))
    yield Check(
        "norm",
        "add_rms_norm",
        added,
        # The norm is that of the stored (rounded) sum.
        lambda: (exact(x + residual), x.double() + residual.double()),
        ROWS,
        (_NORMED, _ROUNDED),
    )


def silu_muls(make: Maker) -> Iterator[Check]:
    """A check of the gated activation."""
    gate_up = make.normal(ROWS, 2 * make.shape.feed_forward)

    def expected() -> Outputs:
        gate, up = gate_up.double().chunk(2, -1)
        return (gate * torch.sigmoid(gate) * up,)

    yield Check(
        "silu_mul",
        "silu_mul",
        lambda rows: (make.backend.silu_mul(taken(gate_up, rows)),),
        expected,
        ROWS,
        ((2**-6, 1e-3),),
    )


def linears(make: Maker) -> Iterator[Check]:
    """Checks of the layer with a bias, and of that with the longest sums; in bf16 and fp8."""
    s = make.shape
    width = (s.heads + 2 * s.kv_heads) * s.head_dim
    for name, n, k in (("qkv", width, s.hidden), ("down", s.hidden, s.feed_forward)):
        x = make.normal(ROWS, k)
        weight, bias = make.normal(n, k, spread=k**-0.5), make.normal(n)
        scale, narrow = make.uniform(n), make.normal(n, k).to(torch.float8_e4m3fn)
        yield _linear(make.backend, f"{name}_bf16", x, weight, bias, None)
        yield _linear(make.backend, f"{name}_fp8", x, narrow, None, scale * k**-0.5)


def _linear(
    backend: Backend,
    name: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
) -> Check:
    def expected() -> Outputs:
        y = x.double() @ weight.to(torch.float32).double().T
        y = y if scale is None else y * scale.double()
        return (y if bias is None else y + bias.double(),)

    return Check(
        "skinny_gemm",
        name,
        lambda rows: (backend.linear(taken(x, rows), weight, bias, scale),),
        expected,
        len(x),
        (_ROUNDED,),
    )


def packed(make: Maker) -> Iterator[Check]:
    """Checks of int4 with and without zero points, and of fp8 in blocks."""
    s = make.shape
    n, k = s.hidden, s.feed_forward + s.feed_forward % 2
    group = 128 if k % 256 == 0 else k
    x, groups = make.normal(ROWS, k), -(-k // group)
    codes = make.whole(0, 256, n, k // 2, dtype=torch.uint8)
    scale = (make.uniform(groups, n) * (k**-0.5 / 5)).half()
    zero = make.whole(6, 11, groups, n, dtype=torch.int16)
    narrow = make.normal(n, k).to(torch.float8_e4m3fn)
    blocks = make.uniform(-(-n // 128), -(-k // 128)) * k**-0.5
    for name, weight in (
        ("int4", IntWeight(codes, scale, None, 4, group)),
        ("int4_zeros", IntWeight(codes, scale, zero, 4, group)),
        ("fp8_blocks", Fp8Weight(narrow, blocks, (128, 128))),
    ):
        yield _packed(make.backend, name, x, weight)


def _packed(backend: Backend, name: str, x: Tensor, weight: IntWeight | Fp8Weight) -> Check:
    def expected() -> Outputs:
        return (x.double() @ weight.dequantise(torch.float32).double().T,)

    return Check(
        "packed_gemm",
        name,
        lambda rows: (backend.linear(taken(x, rows), weight),),
        expected,
        len(x),
        ((2**-6, 2e-2),),
    )
