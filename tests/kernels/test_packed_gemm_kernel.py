"""Products with packed weights against fp64, through the kernel's launcher and through the face."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import ops, packed_gemm
from kernels.aot.packed_gemm import COMMON, roofline
from kernels.backends.triton import TritonBackend
from kernels.packed_config import Packing, block_of, plan
from kernels.packed_gemm import packed_product, takes
from kernels.packed_kernel import WIDEN
from kernels.reference import packed
from kernels.reference.packed import packed_linear
from kernels.skinny_gemm import FP8
from kernels.types.weights import Fp8Weight, IntWeight, StackedWeight, stack
from tests.kernels.guards import watched

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter does not round to bf16, it truncates.
ROUNDED = 2.0**-8 if DEVICE == "cuda" else 2.0**-7
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: ROUNDED, torch.float16: 2.0**-11}
on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs an NVIDIA GPU")
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


# By the face: the weight, its matrix, rows of x, and whether a kernel is launched.
def stacked(*parts: tuple[object, Tensor]) -> tuple[object, Tensor]:
    return stack([weight for weight, _ in parts]), torch.cat([matrix for _, matrix in parts])


def channels(n: int, k: int, seed: int = 0) -> tuple[Fp8Weight, Tensor]:
    return blocks(n, k, 1, k, seed)


FACES = {
    "groups": (lambda: integers(30, 128, 4, 32, True), 3, True),
    "act order": (lambda: integers(30, 128, 4, 32, True, shuffled=True), 3, True),
    "act order, many rows": (lambda: integers(30, 128, 4, 32, True, shuffled=True), 17, False),
    "8 bits": (lambda: integers(30, 128, 8, 32, False), 3, True),
    "many rows": (lambda: integers(30, 128, 4, 32, True), 17, False),
    "groups without tiles": (lambda: integers(30, 96, 4, 24, True), 3, False),
    "blocks": (lambda: blocks(48, 128, 16, 64), 16, True),
    "rows": (lambda: channels(30, 128), 1, True),
    "stacked groups": (
        lambda: stacked(integers(16, 128, 4, 32, True), integers(8, 128, 4, 32, False, seed=1)),
        3,
        True,
    ),
    "stacked, of two kinds": (
        lambda: stacked(
            integers(16, 128, 4, 32, True),
            blocks(20, 128, 16, 64),
            channels(7, 128),
            (random(9, 128, seed=5), random(9, 128, seed=5).double()),
        ),
        2,
        True,
    ),
}


@interpreted
@pytest.mark.parametrize("name", FACES)
def test_the_face(name: str):
    make, m, launched = FACES[name]
    weight, matrix = make()
    x, bias = random(m, matrix.shape[1]), random(len(matrix), seed=2)
    with watched() as touched:
        found = TritonBackend(torch.device(DEVICE)).linear(x, weight, bias)
    assert bool(touched) == launched
    assert_right(found, x, matrix, bias)
    reference = ops.ReferenceBackend()
    assert_right(reference.linear(x, weight, bias), x, matrix, bias)
    assert_right(reference.linear(x, weight), x, matrix)


def test_what_stacks():
    """Parts of one kind become one weight; else each stays as it is."""
    one, other = integers(16, 128, 4, 32, True), integers(8, 128, 4, 32, False, seed=1)
    weight, matrix = stacked(one, other)
    assert isinstance(weight, IntWeight) and torch.equal(weight.dequantise(torch.float64), matrix)
    both = [integers(16, 128, 4, 32, True, shuffled=True)[0]] * 2
    assert isinstance(stack(both), IntWeight)
    weight, matrix = stacked(blocks(32, 64, 16, 32), blocks(9, 64, 16, 32, seed=1))
    assert isinstance(weight, Fp8Weight) and weight.scale.shape == (3, 2)
    torch.testing.assert_close(weight.dequantise(torch.float32).double(), matrix)
    apart = [
        [one[0], integers(8, 128, 4, 64, True)[0]],
        [one[0], integers(8, 128, 8, 32, True)[0]],
        [one[0], both[0]],
        [both[0], integers(16, 128, 4, 32, True, shuffled=True, seed=3)[0]],
        [blocks(9, 64, 16, 32)[0], blocks(32, 64, 16, 32)[0]],  # a block would reach over
        [blocks(16, 64, 16, 32)[0], blocks(16, 64, 16, 64)[0]],
        [one[0], random(4, 128)],
    ]
    assert all(isinstance(stack(parts), StackedWeight) for parts in apart)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that was made."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.found = max(self.found, result.numel() * result.itemsize)
        return result


@pytest.mark.parametrize(
    "make", [lambda: integers(50, 96, 4, 24, True), lambda: blocks(50, 96, 16, 32)]
)
def test_no_layer_is_dequantised_as_a_whole(make, monkeypatch):
    weight, matrix = make()
    x, bias = random(2, 96), random(50, seed=2)
    assert_right(packed_linear(x, weight, bias), x, matrix, bias)
    monkeypatch.setattr(packed, "SLAB", 7 * 96)
    with Largest() as largest:
        found = packed_linear(x, weight, bias)
    assert_right(found, x, matrix, bias)
    assert largest.found <= 4 * packed.SLAB < matrix.numel()


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


GOOD = integers(3, 32, 4, 16, True)[0]
EIGHT = blocks(3, 32, 2, 16)[0]


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        (torch.ones(17, 32), {}, None, "x must have at most 16 rows, got 17"),
        (torch.ones(2, 31), {}, None, r"x must have shape \[\*, 32\], got \[2, 31\]"),
        (torch.ones(2, 32).double(), {}, None, "x must be float32 or"),
        (torch.ones(32, 2).T, {}, None, "x must have stride 1"),
        (None, {"codes": torch.ones(3, 16)}, None, "weight.codes must be uint8"),
        (None, {"scale": torch.ones(3, 3)}, None, r"weight.scale must have shape \[2, 3\]"),
        (None, {"scale": torch.ones(3, 2).T}, None, "weight.scale must be contiguous"),
        (None, {"zero": torch.ones(2, 3)}, None, "weight.zero must be int16"),
        (None, {"order": torch.ones(31).int()}, None, r"weight.order must have shape \[32\]"),
        (None, {"group": 8, "scale": torch.ones(4, 3), "zero": None}, None, "a multiple of 16"),
        (None, {}, torch.ones(4), r"bias must have shape \[3\]"),
        (None, {}, torch.ones(3).half(), "bias must be float32"),
    ],
)
def test_bad_input(x, weight: dict, bias, message: str):
    changed = IntWeight(**{**vars(GOOD), **weight}).to(torch.device(DEVICE))
    x = torch.ones(2, 32) if x is None else x
    with pytest.raises(ValueError, match=message):
        packed_product(x.to(DEVICE), changed, None if bias is None else bias.to(DEVICE))


def test_bad_blocks():
    bad = Fp8Weight(EIGHT.codes, EIGHT.scale[:, :1].contiguous(), EIGHT.block)
    with pytest.raises(ValueError, match=r"weight.scale must have shape \[2, 2\]"):
        packed_product(random(1, 32), bad)
    with pytest.raises(ValueError, match=r"weight.codes must be on"):
        packed_product(random(1, 32), EIGHT.to(torch.device("meta")))


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
