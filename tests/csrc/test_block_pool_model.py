"""The block pool under random operations, against a slow obvious model."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from engine._core import BlockPool

from .kinds import LARGE, NOBODY, SMALL


class Slab:
    """What anyone would write down about a slab."""

    def __init__(self) -> None:
        self.owner = self.last_owner = self.reserved_for = NOBODY
        self.references: Counter[int] = Counter()  # by block id
        self.fence = [-1, -1]  # last tick of each lane that may touch it


class PoolAgainstModel:
    """The pool and a list of Slabs go through the same random operations."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.slots = random.choice([(9, 1), (7, 2), (3, 2), (1, 4), (1, 1)])
        self.slabs = [Slab() for _ in range(random.randint(1, 4))]
        self.pool = BlockPool(len(self.slabs), self.slots)
        self.clock = [0, 0]  # next tick
        self.retired = [-1, -1]
        self.lent = 0

    def open_to(self, slab: Slab, model: int) -> bool:
        return slab.reserved_for in (NOBODY, model)

    def drained(self, slab: Slab, model: int) -> bool:
        return slab.fence[1 - model] <= self.retired[1 - model]

    def free_slots(self, slab: Slab) -> int:
        return self.slots[slab.owner] - len(slab.references)

    def choices(self, model: int) -> list[int]:
        """Slabs from which the next block may come."""
        own = {
            i: len(s.references)
            for i, s in enumerate(self.slabs)
            if s.owner == model and self.open_to(s, model) and self.free_slots(s)
        }
        if own:
            return [i for i, live in own.items() if live == max(own.values())]
        return self.takeable(model)

    def takeable(self, model: int) -> list[int]:
        return [
            i
            for i, s in enumerate(self.slabs)
            if s.owner == NOBODY and self.open_to(s, model) and self.drained(s, model)
        ]

    def live(self, model: int) -> list[int]:
        return [block for s in self.slabs if s.owner == model for block in s.references]

    def allocate(self, model: int) -> None:
        for _ in range(self.random.randint(1, 8)):
            choices = self.choices(model)
            block = self.pool.allocate(model)
            if block is None:
                assert not choices
                return
            index = block // self.slots[model]
            assert index in choices
            self.note_allocated(self.slabs[index], model, block)

    def note_allocated(self, slab: Slab, model: int, block: int) -> None:
        assert block not in slab.references
        slab.references[block] = 1
        if slab.owner == model:
            return
        self.lent += slab.last_owner == 1 - model
        slab.owner = slab.last_owner = model
        if slab.reserved_for == model:
            slab.reserved_for = NOBODY

    def retain(self, model: int) -> None:
        if blocks := self.live(model):
            block = self.random.choice(blocks)
            self.pool.retain(model, block)
            self.slabs[block // self.slots[model]].references[block] += 1

    def release(self, model: int) -> None:
        """Up to everything: slabs must drain often for lending to be tested."""
        for _ in range(self.random.choice((1, 3, 100))):
            if not (blocks := self.live(model)):
                return
            block = self.random.choice(blocks)
            self.pool.release(model, block)
            slab = self.slabs[block // self.slots[model]]
            slab.references -= Counter([block])
            if not slab.references:
                slab.owner = NOBODY

    def plan(self, model: int) -> None:
        for block in self.live(model):
            if self.random.random() < 0.5:
                self.pool.fence(model, block, self.clock[model])
                self.slabs[block // self.slots[model]].fence[model] = self.clock[model]
        self.clock[model] += 1

    def retire(self, model: int) -> None:
        if self.retired[model] + 1 < self.clock[model]:
            self.retired[model] += 1
            self.pool.retire(model, self.retired[model])

    def reserve(self, model: int) -> None:
        index = self.random.randrange(len(self.slabs))
        if self.open_to(self.slabs[index], model):
            self.pool.reserve(index, model)
            self.slabs[index].reserved_for = model

    def unreserve(self, model: int) -> None:
        self.pool.unreserve(model)
        for slab in self.slabs:
            if slab.reserved_for == model:
                slab.reserved_for = NOBODY

    def step(self) -> None:
        operations = [
            *(self.allocate, self.release, self.plan, self.retire),
            *(self.retain, self.reserve, self.unreserve),
        ]
        (operation,) = self.random.choices(operations, [6, 4, 3, 3, 1, 1, 1])
        operation(self.random.randrange(2))
        self.same_slabs()
        self.same_counts()

    def same_slabs(self) -> None:
        self.pool.check_integrity()
        for index, slab in enumerate(self.slabs):
            assert self.pool.owner(index) == slab.owner
            for block, count in slab.references.items():
                assert self.pool.references(slab.owner, block) == count
        assert self.pool.lent == self.lent
        assert self.pool.free_slabs == sum(s.owner == NOBODY for s in self.slabs)

    def same_counts(self) -> None:
        for model in (SMALL, LARGE):
            own = [s for s in self.slabs if s.owner == model]
            free = sum(self.free_slots(s) for s in own if self.open_to(s, model))
            free += len(self.takeable(model)) * self.slots[model]
            assert self.pool.available(model) == free
            assert self.pool.live(model) == sum(len(s.references) for s in own)
            assert self.pool.owned(model) == len(own)
            assert self.pool.awaits_reserved(model) == any(
                s.reserved_for == model
                and s.owner != model
                and (s.references or not self.drained(s, model))
                for s in self.slabs
            )


@pytest.mark.parametrize("seed", range(30))
def test_against_an_obvious_model(seed: int) -> None:
    """Both say the same after every operation, and slabs did change hands."""
    both = PoolAgainstModel(Random(seed))
    for _ in range(600):
        both.step()
    assert both.lent > 0
