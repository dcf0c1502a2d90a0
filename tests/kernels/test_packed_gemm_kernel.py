"""Products with packed weights against fp64, through the kernel's launcher."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from kernels import packed_gemm
from kernels.aot.packed_gemm import COMMON, roofline
from kernels.packed_config import Packing, block_of, plan
from kernels.packed_gemm import packed_product, takes
from kernels.packed_kernel import WIDEN
from kernels.types.weights import IntWeight
from tests.kernels.packed_weights import DEVICE, assert_right, blocks, integers, random

on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs an NVIDIA GPU")
# Rows, N, K, bits, group: ragged N, tiles of 16 to 128 bytes, whole rows, a short last group.
INTEGERS = [
    (1, 40, 256, 4, 64),
    (3, 33, 896, 4, 128),
    (16, 17, 192, 4, 32),
    (3, 5, 100, 4, 100),
    (2, 20, 3072, 4, 128),
    (3, 21, 160, 4, 64),
    (1, 35, 300, 8, 32),
    (3, 1, 1, 8, 1),
    (16, 19, 1300, 8, 1300),
]


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("m", "n", "k", "bits", "group"), INTEGERS)
def test_integers(m: int, n: int, k: int, bits: int, group: int, zeros: bool):
    weight, matrix = integers(n, k, bits, group, zeros)
    x, bias = random(m, k), random(n, seed=2)
    assert takes(weight)
    assert_right(packed_product(x, weight), x, matrix)
    assert_right(packed_product(x, weight, bias), x, matrix, bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("zeros", [False, True])
def test_narrow_activations(dtype: torch.dtype, zeros: bool):
    """The weights are not rounded to their type: only the result is."""
    weight, matrix = integers(37, 256, 4, 64, zeros)
    x, bias = random(3, 256, dtype=dtype), random(37, dtype=dtype, seed=2)
    assert_right(packed_product(x, weight, bias), x, matrix, bias)
    eight, matrix = integers(37, 256, 8, 64, zeros)
    assert_right(packed_product(x, eight, bias), x, matrix, bias)
    codes, matrix = blocks(37, 256, 32, 64)
    assert_right(packed_product(x, codes, bias), x, matrix, bias)


@pytest.mark.parametrize("m", [1, 3, 16])
@pytest.mark.parametrize(
    ("n", "k", "rows", "columns"),
    [(40, 256, 16, 64), (130, 300, 128, 128), (70, 2560, 32, 128), (9, 48, 4, 16)],
)
def test_fp8_in_blocks(m: int, n: int, k: int, rows: int, columns: int):
    weight, matrix = blocks(n, k, rows, columns)
    x, bias = random(m, k), random(n, seed=2)
    assert_right(packed_product(x, weight), x, matrix)
    assert_right(packed_product(x, weight, bias), x, matrix, bias)


def test_the_shapes_above_split_and_do_not():
    four, eight = Packing("", 4, 128), Packing("", 8, 128, 32, eight=True)
    assert plan(33, 896, four).splits == plan(40, 256, eight).splits == 1
    assert plan(20, 3072, four).splits > 1
    assert plan(70, 2560, eight).splits > 1
    assert {block_of(Packing("", bits, g), k) for _, _, k, bits, g in INTEGERS} == {16, 32, 64, 128}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_code_and_zero_point(dtype: torch.dtype):
    """Each of four bits, in either half of a byte, comes out exactly."""
    n, k = 17, 32
    codes = torch.arange(n * k).view(n, k) * 7 % 16
    zero = torch.arange(n)[None, :]  # 0 to 16
    stored = (codes[:, :16] + 16 * codes[:, 16:]).to(torch.uint8)
    scale = torch.full((1, n), 0.25, dtype=torch.float16)
    weight = IntWeight(stored, scale, zero.short(), 4, k).to(torch.device(DEVICE))
    for first in (0, 16):
        x = torch.eye(k, device=DEVICE, dtype=dtype)[first : first + 16]
        found = packed_product(x, weight).double().cpu()
        assert torch.equal(found, (codes - zero.T).T[first : first + 16] * 0.25)


def asm(text: str, word: int) -> list[int]:
    """Runs what the compiled kernel does with four bytes, which no interpreter does."""
    registers: dict[str, int] = {"$6": word}

    def value(name: str) -> int:
        return registers[name] if name in registers else int(name, 0)

    def bf16(bits: int) -> Tensor:
        return torch.tensor([bits], dtype=torch.int32).to(torch.int16).view(torch.bfloat16)

    def less(one: int, other: int) -> int:
        halves = [bf16(one >> s & 0xFFFF) - bf16(other >> s & 0xFFFF) for s in (0, 16)]
        low, high = (int(half.view(torch.int16)) & 0xFFFF for half in halves)
        return low | high << 16

    def permute(low: int, high: int, picks: int) -> int:
        pool = (low | high << 32).to_bytes(8, "little")
        return int.from_bytes(bytes(pool[picks >> 4 * i & 7] for i in range(4)), "little")

    does = {
        "mov.b32": lambda a: a,
        "and.b32": lambda a, b: a & b,
        "shr.u32": lambda a, b: a >> b,
        "prmt.b32": permute,
        "sub.rn.bf16x2": less,
    }
    for name, into, rest in re.findall(r"^(\w[\w.]*) (\$?\w+), (.*);$", text, re.M):
        registers[into] = does[name](*(value(part) for part in rest.split(", ")))
    return [registers[f"${i}"] for i in range(6)]


def test_what_the_interpreter_cannot_run():
    """All half bytes, in each place of a word; two numbers of bf16 a register."""
    for base in range(16):
        places = [(base + 3 * i) % 16 for i in range(8)]  # low and high halves of four bytes
        word = sum(code << 4 * i for i, code in enumerate(places))
        halves = [h & 0xFFFF for r in asm(WIDEN, word) for h in (r, r >> 16)]
        bits = torch.tensor(halves, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
        expected = [*(c - 8 for c in places[::2]), *(c - 8 for c in places[1::2]), *[1] * 4]
        assert bits.tolist() == expected


def test_a_row_alone_is_the_row_in_any_batch():
    weight, _ = integers(40, 2304, 4, 128, True)
    x = random(16, 2304, dtype=torch.bfloat16)
    together = packed_product(x, weight)
    assert plan(40, 2304, packed_gemm.packing_of(weight)).splits > 1
    for m in (1, 5, 15):
        assert torch.equal(packed_product(x[:m], weight), together[:m])
    assert torch.equal(packed_product(x[11:12], weight)[0], together[11])


def test_strided_rows():
    weight, matrix = integers(24, 64, 4, 32, True)
    x = random(4, 200)[:, 100:164]
    assert_right(packed_product(x, weight), x, matrix)


def test_empty_batch():
    weight, _ = integers(8, 64, 4, 32, True)
    assert packed_product(random(0, 64), weight).shape == (0, 8)


@pytest.mark.parametrize("packing", [*COMMON, Packing("", 4, 32), Packing("", 8, 0)])
@pytest.mark.parametrize(("n", "k"), [(48, 896), (5120, 27648), (1536, 8960), (7, 2304)])
def test_plans_cover_k(n: int, k: int, packing: Packing):
    chosen, width = plan(n, k, packing), k * packing.bits // 8
    covered = chosen.splits * chosen.blocks_per_split * chosen.config.block_k
    assert covered >= width  # all of it
    assert covered - chosen.blocks_per_split * chosen.config.block_k < width  # no split is empty


def test_rooflines_count_packed_bytes():
    int4, zeros, fp8 = COMMON
    n, k = 256, 512
    moved = 2 * 3 * (n + k)  # bf16, three rows in and out
    assert roofline(3, n, k, int4).bytes == n * k // 2 + 2 * 4 * n + moved
    assert roofline(3, n, k, zeros).bytes == n * k // 2 + 4 * 4 * n + moved
    assert roofline(3, n, k, fp8).bytes == n * k + 4 * 2 * 4 + moved
    assert roofline(3, n, k, int4).flops == 2 * 3 * n * k


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize(("n", "k"), [(2048, 1536), (1152, 896), (5120, 27648), (8192, 29568)])
@pytest.mark.parametrize("zeros", [False, True])
def test_real_shapes(n: int, k: int, zeros: bool):
    x = random(16, k, dtype=torch.bfloat16)
    for weight in (integers(n, k, 4, 128, zeros)[0], blocks(n, k, 128, 128)[0]):
        together = packed_product(x, weight)
        assert_right(together, x, weight.dequantise(torch.float64))
        for m in (1, 2, 7, 15):
            assert torch.equal(packed_product(x[:m], weight), together[:m])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = packed_product(x, weight)
        captured.fill_(float("nan"))
        graph.replay()
        assert torch.equal(captured, together)
