"""Tensors in huge pages: each its own, freed together, and plain ones where there are none."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path

import pytest
import torch

from engine.models.weight_memory import WeightMemory

linux = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="no huge pages here")


def mapped(address: int) -> bool:
    """Whether this process has memory there."""
    ranges = (line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines())
    return any(
        int(first, 16) <= address < int(last, 16) for first, last in (r.split("-") for r in ranges)
    )


def test_tensors_do_not_overlap():
    memory = WeightMemory("cpu")
    shapes = [(3, 5), (1,), (2**24 + 1,), (7, 11), (0, 4)]
    made = [
        memory.empty(shape, dtype) for dtype in (torch.bfloat16, torch.float32) for shape in shapes
    ]
    for value, tensor in enumerate(made):
        tensor.fill_(value)
    assert [t.shape for t in made] == [torch.Size(shape) for shape in shapes] * 2
    assert all(t.data_ptr() % 64 == 0 and t.is_contiguous() for t in made)
    assert all(bool((tensor == value).all()) for value, tensor in enumerate(made))


@linux
def test_small_ones_share_a_mapping_that_goes_with_the_last():
    memory = WeightMemory("cpu")
    first, second = (memory.empty((1000,), torch.float32) for _ in range(2))
    address = first.data_ptr()
    assert second.data_ptr() - address == 4032
    del memory, first
    gc.collect()
    second.fill_(1.0)
    assert mapped(address)
    del second
    gc.collect()
    assert not mapped(address)


@linux
def test_more_than_there_is():
    with pytest.raises(MemoryError):
        WeightMemory("cpu").empty((2**60,), torch.bfloat16)


def test_a_system_without_huge_pages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert WeightMemory("cpu").empty((2, 3), torch.float32).shape == (2, 3)


def test_other_devices_are_not_mapped():
    assert WeightMemory("meta").empty((2, 3), torch.bfloat16).device.type == "meta"
