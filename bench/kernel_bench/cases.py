"""The cases that are timed on a GPU: each kernel at a model's shapes, and the same in plain torch.

A new op gives a function ``(shape, batch, maker) -> list[Case]`` and its line in ``CASES``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.kernel_bench.arena_cases import attentions, copies, rope_kvs
from bench.kernel_bench.case import Case, CaseMaker
from bench.kernel_bench.head_cases import confidences, lm_heads
from kernels import norm, packed_gemm, silu_mul, skinny_gemm
from kernels.aot.norm import roofline as norm_roofline
from kernels.aot.packed_gemm import COMMON
from kernels.aot.packed_gemm import roofline as packed_gemm_roofline
from kernels.aot.silu_mul import roofline as silu_mul_roofline
from kernels.aot.skinny_gemm import linear_shapes
from kernels.aot.skinny_gemm import roofline as skinny_gemm_roofline
from kernels.aot.variant import ModelShape
from kernels.packed_config import Packing
from kernels.reference import layers
from kernels.reference.packed import packed_linear
from kernels.types.weights import WORKSPACE, Fp8Weight, IntWeight

EPS = 1e-6
_WIDENED = "widens the weights to bf16 in each call: five times the bytes"


def _norms(shape: ModelShape, batch: int, maker: CaseMaker) -> list[Case]:
    hidden = shape.hidden

    def plain() -> tuple[Tensor, ...]:
        return maker.random(batch, hidden), maker.random(hidden)

    def added() -> tuple[Tensor, ...]:
        # Nothing is added, so that the sum stays finite over any number of calls.
        return maker.random(batch, hidden), maker.zeros(batch, hidden), maker.random(hidden)

    return [
        Case(
            "norm",
            "rms_norm",
            batch,
            norm_roofline(batch, hidden),
            plain,
            partial(norm.rms_norm, eps=EPS),
            partial(layers.rms_norm, eps=EPS),
        ),
        Case(
            "norm",
            "add_rms_norm",
            batch,
            norm_roofline(batch, hidden, add=True),
            added,
            partial(norm.add_rms_norm, eps=EPS),
            partial(layers.add_rms_norm, eps=EPS),
        ),
    ]


def _silu_muls(shape: ModelShape, batch: int, maker: CaseMaker) -> list[Case]:
    width = shape.feed_forward
    return [
        Case(
            "silu_mul",
            "silu_mul",
            batch,
            silu_mul_roofline(batch, width),
            lambda: (maker.random(batch, 2 * width),),
            silu_mul.silu_mul,
            layers.silu_mul,
        )
    ]


def _linears(shape: ModelShape, batch: int, maker: CaseMaker) -> list[Case]:
    """bf16 and fp8; more rows than the kernel takes are the baseline itself, so not timed."""
    found: list[Case] = []
    if batch > skinny_gemm.ROWS:
        return found
    for layer, (n, k) in linear_shapes(shape).items():
        for kind, size in (("bf16", 2), ("fp8", 1)):
            found.append(
                Case(
                    "skinny_gemm",
                    f"{layer}_{kind}",
                    batch,
                    skinny_gemm_roofline(batch, n, k, size),
                    partial(_linear_inputs, maker, batch, n, k, kind),
                    skinny_gemm.skinny_linear,
                    layers.linear,
                    note=_WIDENED if kind == "fp8" else "",
                )
            )
    return found


def _linear_inputs(maker: CaseMaker, batch: int, n: int, k: int, kind: str) -> tuple[Any, ...]:
    x, weight = maker.random(batch, k), maker.random(n, k)
    if kind == "bf16":
        return x, weight
    scale = torch.rand(n, device=maker.device) + 0.5
    return x, weight.to(skinny_gemm.FP8), None, scale


def _packed(shape: ModelShape, batch: int, maker: CaseMaker) -> list[Case]:
    """The packings that large checkpoints mostly come in; the head is never packed."""
    found: list[Case] = []
    if batch > skinny_gemm.ROWS:
        return found
    for layer, (n, k) in linear_shapes(shape).items():
        for packing in COMMON if layer != "head" else ():
            found.append(
                Case(
                    "packed_gemm",
                    f"{layer}_{packing.name}",
                    batch,
                    packed_gemm_roofline(batch, n, k, packing),
                    partial(_packed_inputs, maker, batch, n, k, packing),
                    _of_tensors(packing, True),
                    _of_tensors(packing, False),
                    scratch=WORKSPACE,
                )
            )
    return found


def _packed_inputs(
    maker: CaseMaker, batch: int, n: int, k: int, packing: Packing
) -> tuple[Tensor, ...]:
    """x, codes, scales, and zero points if there are any."""
    groups = -(-k // packing.group)
    if packing.eight:
        scale = torch.rand(-(-n // packing.rows), groups, device=maker.device) + 0.5
        return maker.random(batch, k), maker.random(n, k).to(skinny_gemm.FP8), scale
    width = k * packing.bits // 8
    codes = torch.randint(0, 256, (n, width), device=maker.device, dtype=torch.uint8)
    scale = (torch.rand(groups, n, device=maker.device) + 0.5).half() / 64
    zero = torch.randint(0, 16, (groups, n), device=maker.device).short()
    return (maker.random(batch, k), codes, scale, *((zero,) if packing.zeros else ()))


def _of_tensors(packing: Packing, ours: bool) -> Callable[..., Tensor]:
    """Our product, or the reference's, of the tensors of ``_packed_inputs``."""
    product: Callable[..., Tensor] = packed_gemm.packed_product if ours else packed_linear

    def run(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        if packing.eight:
            return product(x, Fp8Weight(codes, scale, (packing.rows, packing.group)))
        return product(x, IntWeight(codes, scale, zero, packing.bits, packing.group))

    return run


CasesOf = Callable[[ModelShape, int, CaseMaker], list[Case]]
CASES: dict[str, CasesOf] = {
    "confidence": confidences,
    "lm_head": lm_heads,
    "attention": attentions,
    "rope_kv": rope_kvs,
    "copy_blocks": copies,
    "norm": _norms,
    "silu_mul": _silu_muls,
    "skinny_gemm": _linears,
    "packed_gemm": _packed,
}
