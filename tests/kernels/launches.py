"""Launches of every op at ragged shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels import attention, confidence, copy_blocks, lm_head, norm, rope_kv, silu_mul
from kernels.attention_config import Split, Splits, Work
from kernels.packed_gemm import packed_product
from kernels.reference.layers import rope_tables
from kernels.skinny_gemm import FP8, skinny_linear
from kernels.types.attention import KVLayout
from kernels.types.sampling import DrawRows
from kernels.types.weights import Fp8Weight, IntWeight

ON = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUT = KVLayout(2, 2, 32, 16, 3, 3 * 2 * 2 * 2 * 16 + 5)
FINE = Splits(Split(16, 8), Split(16, 4))
EPS = 1e-6


@dataclass
class Case:
    """``run`` takes ``tensors`` by name. apart: whose rows may stand apart. written: in place."""

    run: Callable[..., Any]
    tensors: dict[str, Tensor]
    apart: tuple[str, ...] = ()
    written: tuple[str, ...] = ()


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def integers(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def confidence_case(rows: int, width: int, vocabulary: int, dtype: torch.dtype) -> Case:
    draw = DrawRows.on(
        "cpu",
        temperature=[(0.7, 1.3, 0.0)[i % 3] for i in range(rows)],
        key=range(rows),
        counter=[[i] * 3 for i in range(rows)],
        top_k=[(5, 0)[i % 2] for i in range(rows)],
        top_p=[(0.9, 1.0, 0.5, 0.8)[i % 4] for i in range(rows)],
        min_p=[0.01] * rows,
    )

    def run(logits: Tensor, source: Tensor, targets: Tensor, **columns: Tensor) -> Any:
        plain = DrawRows(*(columns[n] for n in ("temperature", "key", "counter")))
        return (
            confidence.confidence(logits, vocabulary),
            confidence.confidence(logits, vocabulary, plain),
            confidence.confidence(logits, vocabulary, DrawRows(**columns), source),
            confidence.score(logits, vocabulary, targets),
        )

    logits = normal(rows, width, dtype=dtype)
    targets = torch.arange(rows * 3).view(rows, 3) % (vocabulary + 1)
    given = {"logits": logits, "source": logits * 2, "targets": targets, **vars(draw)}
    return Case(run, given, ("logits", "source"))


def lm_head_case(rows: int, depth: int, head_rows: int) -> Case:
    draw = {
        "temperature": torch.full((rows,), 0.8, dtype=torch.float64),
        "key": torch.arange(rows),
        "counter": torch.arange(3 * rows).view(rows, 3),
    }

    def run(hidden: Tensor, weight: Tensor, **columns: Tensor) -> Any:
        given = DrawRows(**columns)
        return (
            *lm_head.lm_head(hidden, weight, head_rows - 1)[0],
            *lm_head.lm_head(hidden, weight, head_rows - 1, given, torch.bfloat16),
        )

    given = {"hidden": normal(rows, depth), "weight": normal(head_rows, depth), **draw}
    return Case(run, given, ("hidden", "weight"))


def attention_case(spans: list[int], contexts: list[int], dtype: torch.dtype) -> Case:
    page, slots = LAYOUT.block_tokens, LAYOUT.slots
    each = [-(-c // page) for c in contexts]
    blocks = torch.randperm(sum(each), generator=torch.Generator().manual_seed(0)).int()
    table = torch.zeros(len(spans), max(each), dtype=torch.int32)
    for row, ids in enumerate(blocks.split(each)):
        table[row, : len(ids)] = ids
    starts = [0, *torch.tensor(spans).cumsum(0).tolist()]
    arena = normal(-(-sum(each) // slots) * LAYOUT.slab_rows, LAYOUT.head_dim, dtype=dtype)

    def run(**tensors: Tensor) -> Tensor:
        work = Work.of(starts, contexts)
        return attention.paged_attention(layout=LAYOUT, layer=1, work=work, splits=FINE, **tensors)

    query = normal(starts[-1] + 2, 6, LAYOUT.head_dim, dtype=dtype)
    return Case(
        run,
        {
            "query": query,
            "arena": arena,
            "table": table,
            "starts": integers(*starts),
            "contexts": integers(*contexts),
        },
    )


def rope_case(rows: int) -> Case:
    def run(first: Tensor, second: Tensor, bias: Tensor, **tensors: Tensor) -> Any:
        shared = {"layout": LAYOUT, "layer": 1, **tensors}
        plain = rope_kv.rope_kv(bias=None, norms=(first, second), **shared)
        return plain, rope_kv.rope_kv(bias=bias, **shared)

    places = torch.randperm(6 * LAYOUT.block_tokens, generator=torch.Generator().manual_seed(0))
    places[0] = -1
    width = LAYOUT.head_dim
    return Case(
        run,
        {
            "qkv": normal(rows, 10 * width),
            "bias": normal(10 * width),
            "first": normal(width),
            "second": normal(width),
            "rope": rope_tables(rows, width, 1e4, torch.float32),
            "positions": torch.arange(rows).int().flip(0),
            "slots": places[:rows].int(),
            "arena": normal(2 * LAYOUT.slab_rows, width),
        },
        written=("arena",),
    )


def copy_case() -> Case:
    def run(arena: Tensor, copies: Tensor) -> Tensor:
        copy_blocks.copy_blocks(arena, LAYOUT, copies)
        return arena.clone()

    pairs = integers(0, 5, 4, 1, -1, 2, 3, 3).view(4, 2)
    arena = normal(2 * LAYOUT.slab_rows, LAYOUT.head_dim)
    return Case(run, {"arena": arena, "copies": pairs}, written=("arena",))


def linear_case(rows: int, n: int, k: int, dtype: torch.dtype, eight: bool = False) -> Case:
    weight = normal(n, k, dtype=dtype)
    tensors = {"x": normal(rows, k, dtype=dtype), "bias": normal(n, dtype=dtype), "weight": weight}
    if eight:
        tensors |= {"weight": weight.to(FP8), "scale": torch.rand(n) + 0.5}
    return Case(skinny_linear, tensors, ("x",))


def packed_case(rows: int, n: int, k: int, bits: int, group: int) -> Case:
    """Integers with zero points; with bits of 0, fp8 in blocks."""

    def run(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, bias: Tensor) -> Any:
        if bits:
            plain, full = (IntWeight(codes, scale, z, bits, group) for z in (None, zero))
            return packed_product(x, plain), packed_product(x, full, bias)
        return packed_product(x, Fp8Weight(codes, scale, (16, group)), bias)

    generator, groups = torch.Generator().manual_seed(0), -(-k // group)
    codes = torch.randint(0, 256, (n, k * (bits or 8) // 8), generator=generator).to(torch.uint8)
    grid = (groups, n) if bits else (-(-n // 16), groups)
    return Case(
        run,
        {
            "x": normal(rows, k),
            "codes": codes if bits else normal(n, k).to(FP8),
            "scale": normal(*grid, dtype=torch.float16 if bits else torch.float32),
            "zero": torch.randint(0, 17, grid, generator=generator).short(),
            "bias": normal(n),
        },
        ("x",),
    )


def norm_case(rows: int, hidden: int, dtype: torch.dtype) -> Case:
    def run(x: Tensor, other: Tensor, residual: Tensor, weight: Tensor) -> Any:
        return norm.rms_norm(x, weight, EPS), norm.add_rms_norm(other, residual, weight, EPS)

    x = normal(rows, hidden, dtype=dtype)
    tensors = {"x": x, "other": x * 2, "residual": x * 3, "weight": normal(hidden, dtype=dtype)}
    return Case(run, tensors, ("x",), ("other",))


CASES: dict[str, Callable[[], Case]] = {
    "confidence of one id": lambda: confidence_case(2, 1, 1, torch.float32),
    "confidence of a ragged width": lambda: confidence_case(5, 131, 127, torch.bfloat16),
    "confidence of several tiles": lambda: confidence_case(2, 4099, 4098, torch.float32),
    "lm_head of few rows": lambda: lm_head_case(3, 72, 131),
    "lm_head of more rows": lambda: lm_head_case(18, 40, 257),
    "attention in halves": lambda: attention_case(
        [1, 2, 0, 17, 67], [33, 16, 0, 31, 97], torch.bfloat16
    ),
    "attention in fp32": lambda: attention_case([1, 65], [1, 65], torch.float32),
    "rope_kv": lambda: rope_case(7),
    "rope_kv of one angle": lambda: rope_case(1),
    "copy_blocks": copy_case,
    "linear of one output": lambda: linear_case(1, 1, 1, torch.float32),
    "linear, narrow": lambda: linear_case(3, 47, 899, torch.bfloat16),
    "linear, split": lambda: linear_case(5, 67, 2501, torch.bfloat16),
    "linear of bytes": lambda: linear_case(2, 35, 2305, torch.bfloat16, True),
    "packed, half bytes": lambda: packed_case(3, 19, 192, 4, 64),
    "packed, split": lambda: packed_case(5, 35, 2368, 4, 2368),
    "packed, bytes": lambda: packed_case(2, 17, 300, 8, 32),
    "packed, blocks": lambda: packed_case(16, 37, 1155, 0, 128),
    "norm": lambda: norm_case(3, 899, torch.bfloat16),
    "silu_mul": lambda: Case(silu_mul.silu_mul, {"gate_up": normal(3, 2 * 1027)}, ("gate_up",)),
}
