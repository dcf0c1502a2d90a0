"""Public kernels to compare ours with, if they are installed.

Each is called through its documented interface, as of the versions named in docs/performance.md;
another version may fail, and then it is left out with a line that says why. Preparations made once
for given arguments (a plan, a layout of its own) are not part of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module, metadata, util
from typing import Any

import torch
from torch import Tensor

from bench.kernel_bench.arena_cases import PAGE
from bench.kernel_bench.head_cases import TEMPERATURE, TOP_K, TOP_P

EPS = 1e-6
Call = Callable[[], object]
_WORKSPACE = 128 * 2**20  # bytes, as in FlashInfer's own examples


@dataclass(frozen=True)
class Rival:
    """A public kernel.

    package: module to import; imported when a case is prepared for it.
    distribution: its package, which has a version.
    prepare: a case's arguments -> a call that can be captured in a graph.
    compared: whether it returns the same as our kernel, so that the results can be compared.
    does: how its work differs from our kernel's; empty if not at all.
    """

    package: str
    distribution: str
    prepare: Callable[..., Call]
    compared: bool = True
    does: str = ""

    @property
    def installed(self) -> bool:
        """Whether its module is found, without importing it."""
        return util.find_spec(self.package) is not None

    @property
    def version(self) -> str:
        """The version of its distribution."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return "unknown"


Rivals = Mapping[tuple[str, str], tuple[Rival, ...]]  # by op and case


def of(op: str, name: str, known: Rivals) -> list[Rival]:
    """Those of a case that are installed."""
    return [rival for rival in known.get((op, name), ()) if rival.installed]


@cache
def _workspace(device: torch.device) -> Tensor:
    """Scratch that all plans share: their calls run one after the other."""
    return torch.zeros(_WORKSPACE, dtype=torch.uint8, device=device)


def _pages(query: Tensor, arena: Tensor, table: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
    """The arena as [pages, 2, kv_heads, page, head_dim], and FlashInfer's description of it."""
    (_, heads, width), (batch, each) = query.shape, table.shape
    cache_ = arena.view(batch * each, 2, -1, PAGE, width)
    indptr = torch.arange(0, (batch + 1) * each, each, dtype=torch.int32, device=arena.device)
    last = torch.full((batch,), PAGE, dtype=torch.int32, device=arena.device)
    return cache_, (indptr, table.flatten(), last, heads, cache_.shape[2], width, PAGE)


def _flashinfer_decode(
    query: Tensor, arena: Tensor, table: Tensor, starts: Tensor, contexts: Tensor
) -> Call:
    flashinfer = import_module("flashinfer")
    pages, plan = _pages(query, arena, table)
    # The path without tensor cores lacks group sizes of 5 and 6.
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        _workspace(arena.device), "HND", use_tensor_cores=True
    )
    wrapper.plan(*plan, q_data_type=query.dtype, kv_data_type=arena.dtype)
    return lambda: wrapper.run(query, pages)


def _flashinfer_prefill(
    query: Tensor, arena: Tensor, table: Tensor, starts: Tensor, contexts: Tensor
) -> Call:
    flashinfer = import_module("flashinfer")
    pages, plan = _pages(query, arena, table)
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(_workspace(arena.device), "HND")
    wrapper.plan(starts, *plan, causal=True, q_data_type=query.dtype, kv_data_type=arena.dtype)
    return lambda: wrapper.run(query, pages)


def _flash_attention(
    query: Tensor, arena: Tensor, table: Tensor, starts: Tensor, contexts: Tensor
) -> Call:
    attend = import_module("flash_attn").flash_attn_with_kvcache
    pages, _ = _pages(query, arena, table)
    batch, (rows, heads, width) = len(table), query.shape
    # Its pages hold multiples of 256 tokens, ours 64: it gets each sequence as one piece.
    whole = pages[table.long()].permute(2, 0, 1, 4, 3, 5).flatten(2, 3).contiguous()
    turned = query.view(batch, rows // batch, heads, width)
    return lambda: attend(turned, whole[0], whole[1], cache_seqlens=contexts, causal=True).view_as(
        query
    )


def _flashinfer_norm(x: Tensor, weight: Tensor) -> Call:
    norm = import_module("flashinfer").rmsnorm
    return lambda: norm(x, weight, EPS)


def _flashinfer_add_norm(x: Tensor, residual: Tensor, weight: Tensor) -> Call:
    norm, more = import_module("flashinfer").fused_add_rmsnorm, residual.clone()

    def run() -> Tensor:  # the sum goes to ``x``, the result to what was added
        norm(more, x, weight, EPS)
        return more

    return run


def _liger_norm(x: Tensor, weight: Tensor) -> Call:
    norm = import_module("liger_kernel.ops").LigerRMSNormFunction
    return lambda: norm.apply(x, weight, EPS)


def _vllm_norm(x: Tensor, weight: Tensor) -> Call:
    norm, out = import_module("vllm._custom_ops").rms_norm, torch.empty_like(x)

    def run() -> Tensor:
        norm(out, x, weight, EPS)
        return out

    return run


def _vllm_add_norm(x: Tensor, residual: Tensor, weight: Tensor) -> Call:
    norm, more = import_module("vllm._custom_ops").fused_add_rms_norm, residual.clone()

    def run() -> Tensor:
        norm(more, x, weight, EPS)
        return more

    return run


def _flashinfer_silu_mul(gate_up: Tensor) -> Call:
    gated = import_module("flashinfer").silu_and_mul
    return lambda: gated(gate_up)


def _liger_silu_mul(gate_up: Tensor) -> Call:
    gated = import_module("liger_kernel.ops").LigerSiLUMulFunction
    gate, up = (half.contiguous() for half in gate_up.chunk(2, -1))  # it accepts no slices
    return lambda: gated.apply(gate, up)


def _random_place(device: torch.device) -> dict[str, Tensor]:
    """Seed and offset as tensors, as FlashInfer wants in a graph: each replay draws the same."""
    return {
        name: torch.tensor([value], device=device) for name, value in (("seed", 7), ("offset", 0))
    }


def _vllm_silu_mul(gate_up: Tensor) -> Call:
    import_module("vllm._custom_ops")  # registers the operator
    gated, out = torch.ops._C.silu_and_mul, gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)

    def run() -> Tensor:
        gated(out, gate_up)
        return out

    return run


def _flashinfer_draw(logits: Tensor, temperature: Tensor, *_: Tensor) -> Call:
    sampling, place = import_module("flashinfer.sampling"), _random_place(logits.device)
    heat = temperature.float()
    return lambda: sampling.sampling_from_probs(sampling.softmax(logits.float(), heat), **place)


def _flashinfer_filters(logits: Tensor, *_: Tensor) -> Call:
    sampling, place = import_module("flashinfer.sampling"), _random_place(logits.device)
    draw = sampling.top_k_top_p_sampling_from_logits
    return lambda: draw(logits.float() / TEMPERATURE, TOP_K, TOP_P, **place)


_infer = partial(Rival, "flashinfer", "flashinfer-python")
_liger = partial(Rival, "liger_kernel", "liger-kernel")
_vllm = partial(Rival, "vllm", "vllm")
_flash = Rival(
    "flash_attn",
    "flash-attn",
    _flash_attention,
    does="keys and values of a sequence in one piece, no pages",
)
_drawn = partial(_infer, compared=False, does="draws only, no statistics")

RIVALS: Rivals = {
    ("attention", "decode"): (_infer(_flashinfer_decode), _flash),
    ("attention", "short"): (_infer(_flashinfer_prefill), _flash),
    ("attention", "prefill"): (_infer(_flashinfer_prefill), _flash),
    ("norm", "rms_norm"): (_infer(_flashinfer_norm), _liger(_liger_norm), _vllm(_vllm_norm)),
    ("norm", "add_rms_norm"): (_infer(_flashinfer_add_norm), _vllm(_vllm_add_norm)),
    ("silu_mul", "silu_mul"): (
        _infer(_flashinfer_silu_mul),
        _liger(_liger_silu_mul, does="gate and up in tensors of their own"),
        _vllm(_vllm_silu_mul),
    ),
    ("confidence", "statistics_draw"): (_drawn(_flashinfer_draw),),
    ("confidence", "statistics_filters"): (_drawn(_flashinfer_filters),),
}


def agree(ours: object, theirs: object) -> bool:
    """Whether two results are the same but for the rounding of half precision."""
    if not (isinstance(ours, Tensor) and isinstance(theirs, Tensor)) or ours.shape != theirs.shape:
        return False
    return torch.allclose(ours.float(), theirs.float(), rtol=0.05, atol=0.05)
