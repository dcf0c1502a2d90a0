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
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import copy_blocks
from tests.kernels.guards import Guards, OutsideError, guarded_allocations, watched
from tests.kernels.launches import CASES, LAYOUT, ON, Case, integers, normal

interpreted = pytest.mark.skipif(ON == "cuda", reason="watches addresses of the interpreter")
on_gpu = pytest.mark.skipif(ON == "cpu", reason="needs an NVIDIA GPU")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter


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
from tests.kernels.launches import CASES
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
