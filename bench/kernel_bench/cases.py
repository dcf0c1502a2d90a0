"""What is timed on a GPU: each kernel at a model's shapes, beside the same in plain torch.

A new op gives a function ``(shape, batch) -> list[Case]`` and its line in ``CASES``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.kernel_bench import case
from bench.kernel_bench.arena_cases import attentions, copies, rope_kvs
from bench.kernel_bench.case import Case
from bench.kernel_bench.head_cases import confidences, lm_heads
from kernels import norm, packed_gemm, silu_mul, skinny_gemm
from kernels.packed_config import COMMON, Packing
from kernels.reference import layers
from kernels.reference.packed import packed_linear
from kernels.types.weights import WORKSPACE, Fp8Weight, IntWeight
from kernels.variant import ModelShape

EPS = 1e-6
_WIDENED = "widens the weights to bf16 in each call: five times the bytes"


def _norms(shape: ModelShape, batch: int) -> list[Case]:
    hidden = shape.hidden

    def plain() -> tuple[Tensor, ...]:
        return case.random(batch, hidden), case.random(hidden)

    def added() -> tuple[Tensor, ...]:
        # Nothing is added, so that the sum stays finite over any number of calls.
        return case.random(batch, hidden), case.zeros(batch, hidden), case.random(hidden)

    return [
        Case(
            "norm", "rms_norm", batch, norm.floor(batch, hidden), plain,
            partial(norm.rms_norm, eps=EPS), partial(layers.rms_norm, eps=EPS),
        ),
        Case(
            "norm", "add_rms_norm", batch, norm.floor(batch, hidden, add=True), added,
            partial(norm.add_rms_norm, eps=EPS), partial(layers.add_rms_norm, eps=EPS),
        ),
    ]  # fmt: skip


def _silu_muls(shape: ModelShape, batch: int) -> list[Case]:
    width = shape.feed_forward
    return [
        Case(
            "silu_mul", "silu_mul", batch, silu_mul.floor(batch, width),
            lambda: (case.random(batch, 2 * width),), silu_mul.silu_mul, layers.silu_mul,
        )
    ]  # fmt: skip


def _linears(shape: ModelShape, batch: int) -> list[Case]:
    """bf16 and fp8; more rows than the kernel takes are the baseline itself, so not timed."""
    found: list[Case] = []
    if batch > skinny_gemm.ROWS:
        return found
    for layer, (n, k) in skinny_gemm.shapes(shape).items():
        for kind, size in (("bf16", 2), ("fp8", 1)):
            found.append(
                Case(
                    "skinny_gemm", f"{layer}_{kind}", batch, skinny_gemm.floor(batch, n, k, size),
                    partial(_linear_inputs, batch, n, k, kind), skinny_gemm.skinny_linear,
                    layers.linear, note=_WIDENED if kind == "fp8" else "",
                )
            )  # fmt: skip
    return found


def _linear_inputs(batch: int, n: int, k: int, kind: str) -> tuple[Any, ...]:
    x, weight = case.random(batch, k), case.random(n, k)
    if kind == "bf16":
        return x, weight
    scale = torch.rand(n, device=case.DEVICE) + 0.5
    return x, weight.to(skinny_gemm.FP8), None, scale


def _packed(shape: ModelShape, batch: int) -> list[Case]:
    """The packings that large checkpoints mostly come in; the head is never packed."""
    found: list[Case] = []
    if batch > skinny_gemm.ROWS:
        return found
    for layer, (n, k) in skinny_gemm.shapes(shape).items():
        for packing in COMMON if layer != "head" else ():
            found.append(
                Case(
                    "packed_gemm", f"{layer}_{packing.name}", batch,
                    packed_gemm.floor(batch, n, k, packing),
                    partial(_packed_inputs, batch, n, k, packing), _of_tensors(packing, True),
                    _of_tensors(packing, False), scratch=WORKSPACE,
                )
            )  # fmt: skip
    return found


def _packed_inputs(batch: int, n: int, k: int, packing: Packing) -> tuple[Tensor, ...]:
    """x, codes, scales, and zero points if there are any."""
    groups = -(-k // packing.group)
    if packing.eight:
        scale = torch.rand(-(-n // packing.rows), groups, device=case.DEVICE) + 0.5
        return case.random(batch, k), case.random(n, k).to(skinny_gemm.FP8), scale
    width = k * packing.bits // 8
    codes = torch.randint(0, 256, (n, width), device=case.DEVICE, dtype=torch.uint8)
    scale = (torch.rand(groups, n, device=case.DEVICE) + 0.5).half() / 64
    zero = torch.randint(0, 16, (groups, n), device=case.DEVICE).short()
    return (case.random(batch, k), codes, scale, *((zero,) if packing.zeros else ()))


def _of_tensors(packing: Packing, ours: bool) -> Callable[..., Tensor]:
    """The product, or the reference's, of what ``_packed_inputs`` makes."""
    product: Callable[..., Tensor] = packed_gemm.packed_product if ours else packed_linear

    def run(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        if packing.eight:
            return product(x, Fp8Weight(codes, scale, (packing.rows, packing.group)))
        return product(x, IntWeight(codes, scale, zero, packing.bits, packing.group))

    return run


CASES: dict[str, Callable[[ModelShape, int], list[Case]]] = {
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
