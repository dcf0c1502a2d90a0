"""The one face of the kernels for callers: nothing above this module knows which version runs.

Tensors on a CUDA device go to the Triton kernels. On a CPU a whole forward pass is one call of the
compiled kernels where they take the model; all else goes to the references. Triton is imported with
the first CUDA tensor, so whoever has no GPU needs none of it. Within ``interpreted()`` tensors
on the CPU go to the kernels too, through Triton's interpreter: slow, for tests of what a GPU runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels import cpu
from kernels.attention_config import Splits, Work, split_attention_bytes
from kernels.cpu import ForwardPass
from kernels.draws import LEAST, DrawRows
from kernels.reference import attention as _attention
from kernels.reference import confidence as _confidence
from kernels.reference import layers
from kernels.reference import logprobs as _logprobs
from kernels.reference import sampling as _sampling
from kernels.reference.attention import AttentionPlan, KVLayout
from kernels.reference.confidence import Confidence
from kernels.reference.layers import rope_tables
from kernels.reference.logprobs import LogProbs, token_logprobs
from kernels.reference.packed import (
    WORKSPACE,
    Fp8Weight,
    IntWeight,
    PackedWeight,
    StackedWeight,
    Weight,
    packed_linear,
    stack,
    weight_tensors,
)
from kernels.reference.penalties import PenaltyRows, penalise
from kernels.reference.sampling import SamplingRows, philox_uniform

__all__ = [
    "WORKSPACE",
    "AttentionPlan",
    "Confidence",
    "DrawRows",
    "ForwardPass",
    "Fp8Weight",
    "GpuLimits",
    "IntWeight",
    "KVLayout",
    "LogProbs",
    "PackedWeight",
    "PenaltyRows",
    "SamplingRows",
    "Splits",
    "StackedWeight",
    "Weight",
    "Work",
    "add_rms_norm",
    "attended",
    "compiled",
    "confidence",
    "copy_blocks",
    "editable",
    "forward_pass",
    "gpu_limits",
    "interpreted",
    "linear",
    "lm_head",
    "paged_attention",
    "penalise",
    "philox_uniform",
    "rms_norm",
    "rope_kv",
    "rope_tables",
    "sample",
    "score",
    "silu_mul",
    "split_attention_bytes",
    "stack",
    "token_logprobs",
    "weight_tensors",
    "with_uniforms",
]

_INTERPRETED: ContextVar[bool] = ContextVar("interpreted", default=False)
_SKINNY_ROWS, _WIDE_HEAD_ROWS = 16, 64


@contextmanager
def interpreted() -> Iterator[None]:
    """Send CPU tensors of this thread to the Triton kernels, which must run in the interpreter."""
    from triton import knobs

    if not knobs.runtime.interpret:
        raise RuntimeError("set TRITON_INTERPRET=1 before the kernels are imported")
    token = _INTERPRETED.set(True)
    try:
        yield
    finally:
        _INTERPRETED.reset(token)


def _fused(x: Tensor) -> bool:
    return x.is_cuda or _INTERPRETED.get()


def compiled(x: Tensor) -> bool:
    """Whether work on ``x`` may go to the kernels that are compiled for a CPU."""
    return x.device.type == "cpu" and not _INTERPRETED.get()


def forward_pass(
    embedding: Tensor, norm: Tensor, head: Tensor, rope: Tensor, layers: Sequence[Any],
    heads: int, eps: float,
) -> ForwardPass | None:  # fmt: skip
    """A model's whole pass in one call; None where no kernels take it. See ``ForwardPass``."""
    if not cpu.takes(embedding, rope, layers):
        return None
    return ForwardPass(embedding, norm, head, rope, layers, heads, eps)


def _tuned(x: Tensor) -> bool:
    """Whether matrix products of our own are made for where ``x`` is."""
    if not x.is_cuda:
        return True  # the interpreter
    from kernels import skinny_gemm

    return skinny_gemm.hopper(x.device)


class GpuLimits(NamedTuple):
    """What the kernels for a GPU were built for."""

    block_tokens: tuple[int, ...]
    head_dims: tuple[int, ...]
    widest_group: int  # query heads that share a key head


def gpu_limits() -> GpuLimits:
    """Imports Triton, so it is for machines with a GPU."""
    from kernels.arena import PAGES
    from kernels.attention import HEAD_DIMS, WIDEST_GROUP

    return GpuLimits(PAGES, HEAD_DIMS, WIDEST_GROUP)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / rms(x) * weight`` over the last dimension; see the reference."""
    if _fused(x):
        from kernels import norm

        return norm.rms_norm(x, weight, eps)
    return layers.rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add ``residual`` to ``x`` in place and return the norm of the sum."""
    if _fused(x):
        from kernels import norm

        return norm.add_rms_norm(x, residual, weight, eps)
    return layers.add_rms_norm(x, residual, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` where gate and up are the halves of the last dimension."""
    if _fused(gate_up):
        from kernels import silu_mul as kernel

        return kernel.silu_mul(gate_up)
    return layers.silu_mul(gate_up)


def linear(
    x: Tensor, weight: Weight, bias: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """``x @ weight^T * scale + bias``; see the references. ``scale`` is for plain weights only.

    On a GPU up to 16 rows go to kernels of our own, more to the vendor's library: weights that are
    packed are dequantised within the kernel, or for the library slab by slab.
    """
    own = _fused(x) and len(x) <= _SKINNY_ROWS and _tuned(x)
    if not isinstance(weight, Tensor):
        if not own:
            return packed_linear(x, weight, bias)
        from kernels import packed_gemm

        return packed_gemm.linear(x, weight, bias)
    if own:
        from kernels import skinny_gemm

        return skinny_gemm.skinny_linear(x, weight, bias, scale)
    return layers.linear(x, weight, bias, scale)


def rope_kv(
    qkv: Tensor,
    bias: Tensor | None,
    rope: Tensor,
    positions: Tensor,
    arena: Tensor,
    plan: AttentionPlan,
    layer: int,
    norms: tuple[Tensor, Tensor] | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Bias, norms, rotation and the writing of keys and values; see the reference."""
    if _fused(qkv):
        from kernels import rope_kv as kernel

        return kernel.rope_kv(
            qkv, bias, rope, positions, plan.slots, arena, plan.layout, layer, norms, eps
        )
    return _attention.rope_kv(qkv, bias, rope, positions, arena, plan, layer, norms, eps)


def paged_attention(arena: Tensor, plan: AttentionPlan, layer: int, query: Tensor) -> Tensor:
    """Causal attention of each row over its own sequence's keys; see the reference."""
    if _fused(query):
        from kernels import attention

        return attention.paged_attention(
            query, arena, plan.layout, layer, plan.table, plan.starts, plan.contexts, plan.work,
            plan.splits,
        )  # fmt: skip
    return _attention.paged_attention(arena, plan, layer, query)


def attended(plan: AttentionPlan, attention_pairs: int) -> int:
    """Pairs of query and key that attention really works on, padding included.

    ``attention_pairs``: queries times keys of all sequences; the kernels come close to it.
    """
    if _fused(plan.slots):
        return attention_pairs
    return sum(group.queries.numel() * group.keys.shape[-1] for group in plan.groups)


def copy_blocks(arena: Tensor, layout: KVLayout, copies: Tensor) -> None:
    """Copy whole blocks, ``copies`` int32 [pairs, (from, to)]; see the reference."""
    if _fused(arena):
        from kernels import copy_blocks as kernel

        return kernel.copy_blocks(arena, layout, copies)
    return _attention.copy_blocks(arena, layout, copies)


def lm_head(
    hidden: Tensor, weight: Tensor, vocabulary: int, keep: bool, fused: bool = True
) -> tuple[Confidence, Tensor | None]:
    """The statistics of each row, and if ``keep`` its logits, fp32 [rows, head_rows].

    Args:
        hidden: [rows, hidden], after the last norm.
        weight: [head_rows, hidden].
        vocabulary: ids from here on are padding of the head and take no part.
        keep: whether the logits are wanted; without, a GPU never stores them.
        fused: False makes the product first and reads it again, as most engines do.
    """
    small = hidden.element_size() == 2 or len(hidden) <= _WIDE_HEAD_ROWS  # tiles fit a card
    if fused and _fused(hidden) and _tuned(hidden) and small:
        from kernels import lm_head as kernel

        found, kept = kernel.lm_head(
            hidden, weight, vocabulary, None, torch.float32 if keep else None
        )
        return Confidence(*found[: len(Confidence._fields)]), kept
    logits = linear(hidden, weight).float()
    return confidence(logits, vocabulary), logits if keep else None


def head_logits(hidden: Tensor, weight: Tensor, vocabulary: int) -> Tensor:
    """Logits alone, fp32 [rows, head_rows]; arguments as of ``lm_head``.

    They are sums in fp32 also where weights have two bytes: rounded to bf16 a logit of 20 would be
    off by up to 0.06.
    """
    if _fused(hidden):
        _, logits = lm_head(hidden, weight, vocabulary, keep=True)
        assert logits is not None
        return logits
    if hidden.dtype == torch.float32:
        return linear(hidden, weight)
    wide, slab = hidden.float(), max(1, WORKSPACE // 4 // hidden.shape[1])
    return torch.cat([layers.linear(wide, rows.float()) for rows in weight.split(slab)], 1)


def confidence(logits: Tensor, vocabulary: int) -> Confidence:
    """Statistics of each row: see ``kernels.reference.confidence.confidence``."""
    if compiled(logits) and logits.dtype != torch.float64:
        return cpu.confidence(logits.float(), vocabulary)
    if not _fused(logits):
        return _confidence.confidence(logits, vocabulary)
    from kernels.confidence import confidence as fused  # Triton, not to be imported elsewhere

    return Confidence(*fused(logits, vocabulary)[: len(Confidence._fields)])


def score(logits: Tensor, vocabulary: int, targets: Tensor) -> Tensor:
    """Log-probabilities of given ids, fp64 of the shape of ``targets``; see the reference."""
    if _fused(logits):
        from kernels.confidence import score as fused

        return fused(logits, vocabulary, targets).double()
    return _logprobs.score(logits, vocabulary, targets, confidence(logits, vocabulary))


def editable(logits: Tensor, vocabulary: int) -> Tensor:
    """A copy to change and to draw from, of ``vocabulary`` columns or more.

    fp64; where the kernels take no more fp32, and whole rows: cut off they could be unaligned.
    """
    if _fused(logits):
        return logits.to(torch.float32, copy=True)
    return logits[:, :vocabulary].double()


def sample(logits: Tensor, vocabulary: int, rows: SamplingRows | DrawRows) -> Tensor:
    """One token id a row, int64 [rows]; see the reference. A key draws the same token everywhere.

    Args:
        logits: [rows, at least vocabulary].
        vocabulary: ids from here on take no part.
        rows: how to draw; ``DrawRows`` on the device of the logits.
    """
    if isinstance(rows, SamplingRows):
        return _sampling.sample(logits, vocabulary, rows)
    if not _fused(logits):
        return _sampling.sample(logits, vocabulary, with_uniforms(rows))
    from kernels.confidence import confidence as fused

    # Rows without filters would be drawn from in the order of ids, not in that of likelihood.
    least = torch.full_like(rows.temperature, LEAST)
    min_p = least if rows.min_p is None else rows.min_p.clamp(min=LEAST)
    return fused(logits, vocabulary, replace(rows, min_p=min_p)).token


def with_uniforms(rows: DrawRows) -> SamplingRows:
    """What the reference draws with, in plain PyTorch; ``rows`` on the CPU."""
    off = torch.zeros_like(rows.temperature)
    return SamplingRows(
        temperature=rows.temperature,
        top_k=off.long() if rows.top_k is None else rows.top_k,
        top_p=off + 1 if rows.top_p is None else rows.top_p,
        min_p=off if rows.min_p is None else rows.min_p,
        uniform=philox_uniform(
            rows.seed.numpy().view(np.uint64), rows.counter.numpy().view(np.uint64)
        ),
    )
