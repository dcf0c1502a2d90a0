"""Products with packed weights through the face: what is stacked, dequantised and refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import ops
from kernels.backends.triton import TritonBackend
from kernels.packed_gemm import packed_product
from kernels.reference import packed
from kernels.reference.packed import packed_linear
from kernels.types.weights import Fp8Weight, IntWeight, StackedWeight, stack
from tests.kernels.guards import watched
from tests.kernels.packed_weights import DEVICE, assert_right, blocks, integers, interpreted, random


def stacked(*parts: tuple[object, Tensor]) -> tuple[object, Tensor]:
    return stack([weight for weight, _ in parts]), torch.cat([matrix for _, matrix in parts])


def channels(n: int, k: int, seed: int = 0) -> tuple[Fp8Weight, Tensor]:
    return blocks(n, k, 1, k, seed)


# The weight, its matrix, rows of x, and whether a kernel is launched.
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
