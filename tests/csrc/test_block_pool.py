"""The block pool, one behaviour a test."""

from __future__ import annotations

import pytest

from engine._core import BlockPool

from .kinds import LARGE, NOBODY, SMALL

RATIO = (7, 2)  # does not divide


def fill(pool: BlockPool, model: int) -> list[int]:
    """Allocate until nothing is left."""
    blocks = []
    while (block := pool.allocate(model)) is not None:
        blocks.append(block)
    return blocks


@pytest.mark.parametrize("slots", [(9, 1), (7, 2), (1, 1), (2, 5)])
@pytest.mark.parametrize("model", [SMALL, LARGE])
def test_a_model_alone_gets_every_slot_once(slots: tuple[int, int], model: int) -> None:
    """Every id of slab * slots + slot comes once, then nothing."""
    pool = BlockPool(3, slots)
    assert pool.available(model) == 3 * slots[model]
    assert sorted(fill(pool, model)) == list(range(3 * slots[model]))
    assert (pool.available(model), pool.live(model), pool.free_slabs) == (0, 3 * slots[model], 0)
    pool.check_integrity()


def test_the_last_reference_frees_the_block() -> None:
    """A block with two references survives one release."""
    pool = BlockPool(1, RATIO)
    block = pool.allocate(SMALL)
    pool.retain(SMALL, block)
    assert pool.references(SMALL, block) == 2
    pool.release(SMALL, block)
    assert (pool.references(SMALL, block), pool.live(SMALL)) == (1, 1)
    pool.release(SMALL, block)
    assert (pool.references(SMALL, block), pool.live(SMALL), pool.owner(0)) == (0, 0, NOBODY)
    pool.check_integrity()


def test_the_last_block_frees_the_slab() -> None:
    """A slab belongs to its model as long as one block lives."""
    pool = BlockPool(2, RATIO)
    first, second = pool.allocate(SMALL), pool.allocate(SMALL)
    pool.release(SMALL, first)
    assert (pool.owner(0), pool.owned(SMALL), pool.free_slabs) == (SMALL, 1, 1)
    pool.release(SMALL, second)
    assert (pool.owner(0), pool.owned(SMALL), pool.free_slabs) == (NOBODY, 0, 2)


def test_the_fullest_slab_goes_first() -> None:
    """New blocks fill the fullest open slab, so that the emptiest can drain and be lent."""
    pool = BlockPool(3, RATIO)
    blocks = fill(pool, SMALL)
    for block in (*blocks[0:3], *blocks[7:12], *blocks[14:15]):  # 4, 2 and 6 stay live
        pool.release(SMALL, block)
    order = [block // 7 for block in fill(pool, SMALL)]
    assert order == [2] + [0] * 3 + [1] * 5
    pool.check_integrity()


def test_open_slabs_go_before_free_ones() -> None:
    """A free slab is cut only when no slab of the model has a free slot."""
    pool = BlockPool(2, RATIO)
    slabs = [pool.allocate(LARGE) // 2 for _ in range(3)]
    assert slabs[0] == slabs[1] != slabs[2]


def test_lending() -> None:
    """A drained slab goes to whichever model asks next, cut into its own slots, and is counted."""
    pool = BlockPool(2, RATIO)
    small = fill(pool, SMALL)
    assert pool.allocate(LARGE) is None
    for block in small[:7]:
        pool.release(SMALL, block)
    assert fill(pool, LARGE) == [0, 1]
    assert (pool.lent, pool.owner(0), pool.owner(1)) == (1, LARGE, SMALL)
    for block in (0, 1):
        pool.release(LARGE, block)
    assert (sorted(fill(pool, SMALL)), pool.lent) == (small[:7], 2)
    pool.check_integrity()


def test_first_use_is_not_lending() -> None:
    """Only slabs that change hands count as lent."""
    pool = BlockPool(2, RATIO)
    pool.allocate(SMALL), pool.allocate(LARGE)
    assert pool.lent == 0


def test_one_partly_used_slab_is_not_lent() -> None:
    """One live block holds the whole slab."""
    pool = BlockPool(1, (9, 1))
    blocks = fill(pool, SMALL)
    for block in blocks[1:]:
        pool.release(SMALL, block)
    assert (pool.available(SMALL), pool.available(LARGE)) == (8, 0)
    assert pool.allocate(LARGE) is None


def test_a_fence_holds_the_slab_from_the_other_lane() -> None:
    """A slab freed while its tick is in flight goes to the other model only when it retires."""
    pool = BlockPool(1, RATIO)
    block = pool.allocate(SMALL)
    pool.fence(SMALL, block, 0)
    pool.release(SMALL, block)
    assert (pool.available(LARGE), pool.allocate(LARGE)) == (0, None)
    pool.retire(SMALL, 0)
    assert (pool.available(LARGE), pool.allocate(LARGE)) == (2, 0)


def test_a_fence_holds_what_is_cached_from_the_other_lane() -> None:
    """A slab that holds only cache is no room for the other model while its tick is in flight."""
    pool = BlockPool(1, RATIO)
    block = pool.allocate(SMALL)
    pool.fence(SMALL, block, 0)
    pool.release(SMALL, block, keep=True)
    assert (pool.reclaimable(SMALL), pool.reclaimable(LARGE)) == (1, 0)
    pool.retire(SMALL, 0)
    assert (pool.reclaimable(SMALL), pool.reclaimable(LARGE)) == (1, 2)


def test_the_last_of_several_fences_counts() -> None:
    """A slab is lent on after all of its fences, not after the first."""
    pool = BlockPool(1, RATIO)
    first, second = pool.allocate(SMALL), pool.allocate(SMALL)
    pool.fence(SMALL, second, 1)
    pool.fence(SMALL, first, 0)
    for block in (first, second):
        pool.release(SMALL, block)
    pool.retire(SMALL, 0)
    assert pool.allocate(LARGE) is None
    pool.retire(SMALL, 1)
    assert pool.allocate(LARGE) is not None


def test_a_lane_reuses_its_own_slab_at_once() -> None:
    """The ticks of one lane run in order, so its own fences do not stop it."""
    pool = BlockPool(1, RATIO)
    block = pool.allocate(SMALL)
    pool.fence(SMALL, block, 0)
    pool.release(SMALL, block)
    assert pool.available(SMALL) == 7
    assert pool.allocate(SMALL) == block


def test_reuse_by_its_own_lane_keeps_the_fence() -> None:
    """A slab freed, taken again and freed within a tick in flight is still fenced by that tick."""
    pool = BlockPool(1, RATIO)
    block = pool.allocate(SMALL)
    pool.fence(SMALL, block, 0)
    pool.release(SMALL, block)
    pool.release(SMALL, pool.allocate(SMALL))
    assert pool.allocate(LARGE) is None
    pool.retire(SMALL, 0)
    assert pool.allocate(LARGE) is not None


def test_the_fence_of_one_lane_is_not_that_of_the_other() -> None:
    """Retiring a tick of the other lane frees nothing."""
    pool = BlockPool(1, RATIO)
    block = pool.allocate(SMALL)
    pool.fence(SMALL, block, 0)
    pool.release(SMALL, block)
    pool.retire(LARGE, 5)
    assert pool.allocate(LARGE) is None


def test_a_reserved_slab_is_closed_to_its_owner() -> None:
    """The owner of a slab that is being emptied gets no more blocks in it."""
    pool = BlockPool(1, RATIO)
    block = pool.allocate(SMALL)
    pool.reserve(0, LARGE)
    assert (pool.allocate(SMALL), pool.available(SMALL)) == (None, 0)
    assert pool.awaits_reserved(LARGE)
    assert not pool.awaits_reserved(SMALL)
    pool.release(SMALL, block)
    assert not pool.awaits_reserved(LARGE)
    assert (pool.allocate(SMALL), pool.available(LARGE)) == (None, 2)
    assert pool.allocate(LARGE) is not None


def test_a_fenced_reservation_is_awaited() -> None:
    """An empty reserved slab is still to come while its fence holds."""
    pool = BlockPool(1, RATIO)
    block = pool.allocate(SMALL)
    pool.fence(SMALL, block, 0)
    pool.reserve(0, LARGE)
    pool.release(SMALL, block)
    assert pool.awaits_reserved(LARGE)
    pool.retire(SMALL, 0)
    assert not pool.awaits_reserved(LARGE)


def test_a_served_reservation_is_over() -> None:
    """Once the model has taken the slab, anyone may have it after."""
    pool = BlockPool(1, RATIO)
    pool.reserve(0, LARGE)
    pool.release(LARGE, pool.allocate(LARGE))
    assert pool.allocate(SMALL) is not None


def test_unreserve_opens_the_slab_again() -> None:
    """What was closed for a reservation serves its owner again."""
    pool = BlockPool(1, RATIO)
    pool.allocate(SMALL)
    pool.reserve(0, LARGE)
    pool.unreserve(LARGE)
    assert (len(fill(pool, SMALL)), pool.awaits_reserved(LARGE)) == (6, False)
    pool.check_integrity()


def test_a_reservation_is_not_stolen() -> None:
    """Two models cannot reserve one slab."""
    pool = BlockPool(1, RATIO)
    pool.reserve(0, LARGE)
    pool.reserve(0, LARGE)
    with pytest.raises(RuntimeError, match="reserved for the other"):
        pool.reserve(0, SMALL)


@pytest.mark.parametrize(("slabs", "slots"), [(0, (1, 1)), (-1, (1, 1)), (1, (0, 1)), (1, (3, -1))])
def test_impossible_shapes(slabs: int, slots: tuple[int, int]) -> None:
    """An arena without slabs, or slabs without blocks, is refused."""
    with pytest.raises(ValueError):
        BlockPool(slabs, slots)


@pytest.mark.parametrize("block", [-1, 0, 1, 5, 7, 10_000])
def test_misuse_of_blocks_that_are_not_live(block: int) -> None:
    """Only live blocks of that model can be retained, released or fenced."""
    pool = BlockPool(1, RATIO)
    pool.allocate(LARGE)  # block 0 of the large model is live; no small one is
    assert pool.references(SMALL, block) == 0
    with pytest.raises(RuntimeError, match="retain"):
        pool.retain(SMALL, block)
    with pytest.raises(RuntimeError, match="release"):
        pool.release(SMALL, block)
    with pytest.raises(RuntimeError, match="fence"):
        pool.fence(SMALL, block, 0)
    pool.check_integrity()


def test_double_release() -> None:
    """A reference can be given back once."""
    pool = BlockPool(1, RATIO)
    pool.allocate(SMALL)
    block = pool.allocate(SMALL)
    pool.release(SMALL, block)
    with pytest.raises(RuntimeError, match="release"):
        pool.release(SMALL, block)


def test_ticks_retire_in_order() -> None:
    """A tick retires once, after those before it."""
    pool = BlockPool(1, RATIO)
    pool.retire(SMALL, 3)
    for tick in (3, 2):
        with pytest.raises(RuntimeError, match="in order"):
            pool.retire(SMALL, tick)
    pool.retire(LARGE, 0)
