"""The CPU references of the kernels at small fixed shapes: these benchmarks run without a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bench.table import render
from kernels.reference import attention, confidence, layers, packed
from kernels.types.attention import AttentionPlan, KVLayout
from kernels.types.weights import IntWeight

Row = dict[str, Any]
Call = Callable[[], object]
ROWS, HIDDEN, WIDTH, VOCABULARY, HEAD_DIM = 8, 1024, 2816, 32000, 64
HEADS, KV_HEADS, CONTEXT, BLOCK, GROUP = 12, 2, 256, 64, 128


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _plan() -> tuple[Tensor, AttentionPlan]:
    """An arena and a batch of decodes, each with CONTEXT keys."""
    each = CONTEXT // BLOCK
    blocks = torch.arange(ROWS * each).view(ROWS, each)
    layout = KVLayout(1, KV_HEADS, HEAD_DIM, BLOCK, 1, 2 * KV_HEADS * BLOCK)
    plan = AttentionPlan.build(
        layout,
        starts=torch.arange(ROWS + 1),
        contexts=torch.full((ROWS,), CONTEXT),
        blocks=blocks,
        slots=blocks[:, -1] * BLOCK + BLOCK - 1,
    )
    return _random(ROWS * each * layout.slab_rows, HEAD_DIM), plan


def _confidence() -> Call:
    logits = _random(ROWS, VOCABULARY)
    return lambda: confidence.confidence(logits, VOCABULARY)


def _lm_head() -> Call:
    x, head = _random(ROWS, HIDDEN), _random(VOCABULARY, HIDDEN)
    return lambda: confidence.confidence(layers.linear(x, head), VOCABULARY)


def _attention() -> Call:
    arena, plan = _plan()
    query = _random(ROWS, HEADS, HEAD_DIM)
    return lambda: attention.paged_attention(arena, plan, 0, query)


def _rope_kv() -> Call:
    arena, plan = _plan()
    query, key = _random(ROWS, HEADS, HEAD_DIM), _random(ROWS, KV_HEADS, HEAD_DIM)
    cosine, sine = layers.rope_tables(ROWS, HEAD_DIM, 1e6, torch.float32)[:, :, None]

    def run() -> None:
        layers.apply_rope(query, cosine, sine)
        attention.write_kv(arena, plan, 0, layers.apply_rope(key, cosine, sine), key)

    return run


def _copy_blocks() -> Call:
    arena, plan = _plan()
    copies = torch.arange(2 * ROWS).view(2, ROWS).T
    return lambda: attention.copy_blocks(arena, plan.layout, copies)


def _norm() -> Call:
    x, residual, weight = _random(ROWS, HIDDEN), torch.zeros(ROWS, HIDDEN), _random(HIDDEN)
    return lambda: layers.add_rms_norm(x, residual, weight, 1e-6)


def _silu_mul() -> Call:
    gate_up = _random(ROWS, 2 * WIDTH)
    return lambda: layers.silu_mul(gate_up)


def _skinny_gemm() -> Call:
    x, weight = _random(ROWS, HIDDEN), _random(WIDTH, HIDDEN)
    return lambda: layers.linear(x, weight)


def _packed_gemm() -> Call:
    codes = torch.randint(0, 256, (WIDTH, HIDDEN // 2), dtype=torch.uint8)
    scale = _random(HIDDEN // GROUP, WIDTH).half()
    x, weight = _random(ROWS, HIDDEN), IntWeight(codes, scale, None, 4, GROUP)
    return lambda: packed.packed_linear(x, weight)


REFERENCES: dict[str, Callable[[], Call]] = {
    "confidence": _confidence,
    "lm_head": _lm_head,
    "attention": _attention,
    "rope_kv": _rope_kv,
    "copy_blocks": _copy_blocks,
    "norm": _norm,
    "silu_mul": _silu_mul,
    "skinny_gemm": _skinny_gemm,
    "packed_gemm": _packed_gemm,
}


def time_references(ops: Sequence[str], repeats: int) -> list[Row]:
    """A row for each op: medians and the 20th and 80th percentiles in microseconds."""
    return [_time(op, REFERENCES[op](), repeats) for op in tqdm(ops, "references")]


def _time(op: str, run: Call, repeats: int) -> Row:
    for _ in range(3):
        run()
    micros = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        micros.append(1e6 * (time.perf_counter() - started))
    fifths = quantiles(micros, n=10)
    return {
        "kind": "reference",
        "op": op,
        "device": "cpu",
        "rows": ROWS,
        "dtype": "float32",
        "repeats": repeats,
        "p20_us": fifths[1],
        "p50_us": fifths[4],
        "p80_us": fifths[7],
    }


def show(rows: Sequence[Row]) -> str:
    """The table."""
    header = ("reference on the CPU", "rows", "p20 us", "p50 us", "p80 us")
    percentiles = ("p20_us", "p50_us", "p80_us")
    return render(
        header, [(r["op"], str(r["rows"]), *(f"{r[p]:.1f}" for p in percentiles)) for r in rows]
    )
