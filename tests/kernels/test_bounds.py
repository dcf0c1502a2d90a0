"""No launch reads or writes outside its buffers.

Every tensor, given or allocated, lies between guards. They must stay as they are, and what is in
them must not change a bit of the results. In the interpreter each address is checked as well; on a
GPU `make gpu-check` has compute-sanitizer do that.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import attention, confidence, copy_blocks, lm_head, norm, rope_kv, silu_mul
from kernels.attention_config import Split, Splits, Work
from kernels.packed_gemm import packed_product
from kernels.reference.layers import rope_tables
from kernels.skinny_gemm import FP8, skinny_linear
from kernels.types.attention import KVLayout
from kernels.types.sampling import DrawRows
from kernels.types.weights import Fp8Weight, IntWeight
from tests.kernels.guards import Guards, OutsideError, guarded_allocations, watched

ON = "cuda" if torch.cuda.is_available() else "cpu"
interpreted = pytest.mark.skipif(ON == "cuda", reason="watches addresses of the interpreter")
on_gpu = pytest.mark.skipif(ON == "cpu", reason="needs an NVIDIA GPU")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
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
        seed=range(rows),
        counter=[[i] * 4 for i in range(rows)],
        top_k=[(5, 0)[i % 2] for i in range(rows)],
        top_p=[(0.9, 1.0, 0.5, 0.8)[i % 4] for i in range(rows)],
        min_p=[0.01] * rows,
    )

    def run(logits: Tensor, source: Tensor, targets: Tensor, **columns: Tensor) -> Any:
        plain = DrawRows(*(columns[n] for n in ("temperature", "seed", "counter")))
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
        "seed": torch.arange(rows),
        "counter": torch.arange(4 * rows).view(rows, 4),
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


def flat(results: Any) -> list[Tensor]:
    """Tensors of nested results, as bits."""
    if isinstance(results, Tensor):
        return [results.contiguous().view(-1).view(torch.uint8).clone()]
    return [t for part in results if part is not None for t in flat(part)]


def flat_views(results: Any) -> list[Tensor]:
    """The tensors themselves, as bytes."""
    if isinstance(results, Tensor):
        return [results.view(torch.uint8)]
    return [t for part in results if part is not None for t in flat_views(part)]


def run_guarded(case: Case, guards: Guards) -> list[Tensor]:
    """Results, and what was written in place; guards and arguments that are only read stay."""
    given = {
        name: guards.around(tensor.to(ON), 24 if name in case.apart else 0)
        for name, tensor in case.tensors.items()
    }
    with guarded_allocations(guards):
        results = case.run(**given)
    guards.check()
    for name, tensor in case.tensors.items():
        if name not in case.written:
            assert torch.equal(*(flat(t)[0] for t in (given[name], tensor.to(ON)))), name
    return flat(results) + flat([given[name] for name in case.written])


def check(case: Case, shift: int = 0) -> None:
    """Whatever is in the guards."""
    one, other = (run_guarded(case, Guards(value, shift)) for value in (math.nan, 7.0))
    assert len(one) == len(other) > 0
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


@interpreted
@pytest.mark.parametrize("name", CASES)
def test_addresses_lie_in_the_arguments(name: str):
    with watched() as touched:
        check(CASES[name]())
    assert touched and any(touched)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shift", [0, 1])
def test_guards_on_a_gpu(name: str, shift: int):
    """Shifted by an element too: nothing may rest on an alignment that a slice does not have."""
    if shift and name == "copy_blocks":
        pytest.skip("refuses a slice that is not aligned")
    check(CASES[name](), shift)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("name", CASES)
def test_bare_tensors_on_a_gpu(name: str):
    """Without guards, in which compute-sanitizer could not see an access; the same results."""
    case = CASES[name]()
    given = {name: tensor.to(ON, copy=True) for name, tensor in case.tensors.items()}
    found = flat(case.run(**given)) + flat([given[name] for name in case.written])
    expected = run_guarded(case, Guards(0.0))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("name", CASES)
def test_replay_on_a_gpu(name: str):
    """A graph's replay gives the bits of the eager run, in whatever it allocates."""
    case = CASES[name]()
    given = {name: tensor.to(ON, copy=True) for name, tensor in case.tensors.items()}
    graph = torch.cuda.CUDAGraph()
    eager = flat(case.run(**given)) + flat([given[name] for name in case.written])
    with torch.cuda.graph(graph):
        results = case.run(**given)
    for name in case.written:
        given[name].copy_(case.tensors[name])
    for found in flat_views(results):
        found.fill_(77)
    graph.replay()
    replayed = flat(results) + flat([given[name] for name in case.written])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(eager, replayed, strict=True))


@triton.jit
def _too_far(x, out, count, LOAD: tl.constexpr, STORE: tl.constexpr):  # noqa: N803
    n = tl.arange(0, 16)
    values = tl.load(x + n, mask=n < count + LOAD, other=0.0)
    tl.store(out + n, values, mask=n < count + STORE)


@interpreted
@pytest.mark.parametrize(("load", "store"), [(1, 0), (0, 1)])
def test_the_watch_sees_one_element_too_far(load: int, store: int):
    x, out = (Guards(7.0).around(torch.zeros(9)) for _ in range(2))
    with watched():
        _too_far[(1,)](x, out, 9, 0, 0)
        with pytest.raises(Exception, match="1 of 10 addresses") as caught:
            _too_far[(1,)](x, out, 9, load, store)
    assert isinstance(caught.value.__cause__, OutsideError)


def test_guards_see_a_write():
    guards = Guards(math.nan)
    x = guards.around(torch.zeros(9, device=ON))
    guards.check()
    x.as_strided((10,), (1,), x.storage_offset())[9] = 0
    with pytest.raises(AssertionError, match="a guard was overwritten"):
        guards.check()


def test_a_slice_that_is_not_aligned_is_refused():
    arena = Guards(0.0, 1).around(normal(2 * LAYOUT.slab_rows, LAYOUT.head_dim).to(ON))
    with pytest.raises(ValueError, match="arena must start at a multiple of 16 bytes"):
        copy_blocks.copy_blocks(arena, LAYOUT, integers(0, 1).view(1, 2).to(ON))


ELSEWHERE = """
from tests.kernels.test_bounds import CASES
for name, make in CASES.items():
    case = make()
    try:
        case.run(**case.tensors)
    except ValueError as error:
        print(error)
"""


def test_tensors_on_another_device_are_named():
    """Compiled kernels, tensors of the CPU: no launch is tried."""
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        cwd=Path(__file__).parents[2],
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(CASES), done.stderr[-2000:]
    assert {line.split(" must be on a CUDA device, got cpu")[0] for line in lines} == {
        "logits",
        "hidden",
        "query",
        "qkv",
        "arena",
        "x",
        "gate_up",
    }
