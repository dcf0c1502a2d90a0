"""One op at one shape: its result for chosen rows, and that of fp64 for all rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import deterministic

Outputs = tuple[Tensor, ...]
_FILLS = "fill_uninitialized_memory"  # a property of a module, unknown to type checkers


@dataclass(frozen=True)
class Wrong:
    """An element with a wrong value; ``output`` is the number of the tensor."""

    output: int
    index: tuple[int, ...]
    got: float
    expected: float

    def __str__(self) -> str:
        place = ", ".join(map(str, self.index))
        return f"output {self.output} [{place}] is {self.got:g}, expected {self.expected:g}"


@dataclass(frozen=True)
class Check:
    """An op at a shape.

    run: the op for these rows of the batch (sequences, where spans are longer than a row), which
        are the first axis of each output; its inputs must not stay changed.
    expected: all outputs for all rows in fp64.
    rows: number of rows of the batch.
    near: for each output the allowed error of an element, relative and absolute.
    alone: whether a row's bits must not depend on the other rows.
    """

    op: str
    name: str
    run: Callable[[Sequence[int]], Outputs]
    expected: Callable[[], Outputs]
    rows: int
    near: tuple[tuple[float, float], ...]
    alone: bool = True


@contextmanager
def poisoned() -> Iterator[None]:
    """In this context, memory that PyTorch allocates holds NaN, or the largest integer."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        getattr(deterministic, _FILLS),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    setattr(deterministic, _FILLS, True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        setattr(deterministic, _FILLS, before[2])


def failures(check: Check) -> list[str]:
    """The faults in words; empty if there are none."""
    with poisoned():
        found = _on_host(check.run(range(check.rows)))
        # The last row, in a batch of its own: the other rows must not matter to it.
        last = _on_host(check.run([check.rows - 1])) if check.alone else ()
    told = []
    for number, (got, want, near) in enumerate(
        zip(found, _on_host(check.expected()), check.near, strict=True)
    ):
        wrong = first_wrong(number, got, want, *near)
        if wrong is not None:
            told.append(str(wrong))
    for number, (one, many) in enumerate(zip(last, found, strict=False)):
        if not torch.equal(_bits(one[0]), _bits(many[-1])):
            told.append(f"output {number}: the last row alone has other bits than in the batch")
    return told


def first_wrong(
    number: int, got: Tensor, want: Tensor, relative: float, absolute: float
) -> Wrong | None:
    """The first element that is further off than allowed; NaN counts as such."""
    if got.shape != want.shape:
        return Wrong(number, tuple(got.shape), float("nan"), float(want.numel()))
    ours, theirs = got.double(), want.double()
    same = (ours == theirs) | ((ours - theirs).abs() <= absolute + relative * theirs.abs())
    places = (~same).nonzero()
    if not len(places):
        return None
    index = tuple(places[0].tolist())
    return Wrong(number, index, float(ours[index]), float(theirs[index]))


def _on_host(outputs: Outputs) -> Outputs:
    return tuple(tensor.cpu() for tensor in outputs)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
