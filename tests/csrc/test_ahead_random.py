"""Plans that are made while the last one is in flight, at random and against the synchronous run.

The runs are those of test_random.py with a device behind each lane, see random_device.py.
"""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from engine._core import DRAFT_SOURCES, Sequence

from .kinds import CATCHUP, DISCARDED, DRAFTED, LARGE, PROMPT, RECOMPUTE, REJECTED, SAMPLED, SMALL
from .random_device import Device
from .test_random import TIERS
from .verified_text import Verifying


@pytest.mark.parametrize(("prefix_cache", "host_blocks"), TIERS)
@pytest.mark.parametrize("seed", range(8))
def test_random_operations_with_plans_ahead(
    seed: int, prefix_cache: bool, host_blocks: int
) -> None:
    """As test_random_operations, every row booked once; some bets are won and some are lost."""
    device = Device(seed, prefix_cache, host_blocks=host_blocks)
    device.run()
    assert np.array_equal(device.planned, device.booked)
    counters = device.scheduler.counters()
    print(device.seen, counters)
    assert all(counters["ahead"]) and all(counters["voided"])
    assert (counters["saved"] > 0) == (counters["restored"] > 0) == (host_blocks > 0)


@pytest.mark.parametrize(("prefix_cache", "host_blocks"), TIERS)
@pytest.mark.parametrize("seed", range(8))
def test_random_operations_with_guesses_ahead(
    seed: int, prefix_cache: bool, host_blocks: int
) -> None:
    """Guesses are planned after guesses that only the device knows yet."""
    device = Device(seed, prefix_cache, host_blocks=host_blocks)
    device.drafts, device.sources = (0, 2, 7), DRAFT_SOURCES
    device.run()
    assert np.array_equal(device.planned, device.booked)
    assert device.seen["verified"] > 5 and device.speculation["rounds"] > 5


class Story(Device):
    """Requests, answers, truncations and aborts that follow from the texts alone: only the timing
    is random, and whether plans are made ahead."""

    def __init__(
        self,
        seed: int,
        eager: float,
        prefix_cache: bool,
        drafts: tuple[int, str] = (0, "small"),
        **changes: object,
    ) -> None:
        super().__init__(seed, prefix_cache, **changes)
        self.seed, self.eager, self.ends = seed, eager, {}
        self.drafts, self.sources = drafts[:1], drafts[1:]
        self.usage: dict[int, tuple[list, list, int]] = {}
        self.reused: dict[int, int] = {}  # guesses that had been text

    def run(self) -> None:
        requests = [Random(1000 * self.seed + k) for k in range(40)]
        timing = Random(repr((self.seed, self.eager)))
        waits = [8 * timing.random() for _ in range(2)]
        while requests or self.alive:
            if requests and len(self.alive) < 8 and timing.random() < 0.2:
                self.random = requests.pop(0)
                self.more |= {"ahead": self.random.random() < 0.9}
                self.add()
            self.random = timing
            for lane in (SMALL, LARGE):
                if timing.random() * waits[lane] < 1:
                    self.lane(lane)
                    self.after()
            if timing.random() < 0.5:
                self.route()
            if self.prefix_cache and timing.random() < 0.01:
                self.preempt()
            self.after()
            assert self.operations < 100_000, "the sequences do not come to an end"

    def route(self) -> None:
        if not self.undecided:
            return
        id = self.undecided.pop(self.random.randrange(len(self.undecided)))
        if id not in self.prompts or not (s := self.scheduler.sequence(id)).awaits_route:
            return
        draw = hash((id, s.attempt, *s.tokens.tolist())) >> 3
        if draw % 31 == 0 and s.trial_from < 0:
            self.scheduler.abort(id)
            return
        if draw % 7 == 0 and s.settled < s.length and s.attempt < 5:
            self.scheduler.truncate(id, s.settled + draw // 7 % (s.length - s.settled))
            return
        if draw % 5 == 0 and s.trial_from < 0:
            self.scheduler.settle(id, (s.settled + s.length) // 2)
        rest, unread = draw % 17 == 0, draw % 13 == 0
        self.scheduler.route(id, draw // 100 % 2, rest=rest, unread=unread)

    def finish(self, sequence: Sequence) -> None:
        s = sequence
        self.ends[s.id] = s.tokens.tolist(), s.steps, s.finish, s.cut_bytes, s.forced, s.attempt
        self.usage[s.id] = s.rows.copy(), s.entries.copy(), s.decision_wait
        self.reused[s.id] = s.speculation["reused"]
        super().finish(sequence)


@pytest.mark.parametrize("seed", range(12))
def test_the_answers_are_those_of_the_synchronous_run(seed: int) -> None:
    """With and without plans ahead: the same tokens, steps and ends, in a tight arena with lost KV,
    shared prefixes and, for every other seed, host memory."""
    host = 12 * (seed % 2)
    plain, ahead = (Story(seed, eager, True, host_blocks=host) for eager in (0.0, 0.9))
    for story in (plain, ahead):
        story.run()
        assert np.array_equal(story.planned, story.booked)
    assert len(plain.ends) >= 40
    assert ahead.ends == plain.ends
    assert plain.scheduler.counters()["ahead"] == [0, 0]


@pytest.mark.parametrize("seed", range(12))
def test_it_costs_the_void_rows_and_nothing_else(seed: int) -> None:
    """Where nothing is lost and nothing is found every sequence has the same rows of each kind, and
    besides the discarded ones that were planned in vain."""
    roomy = {"slabs": 80, "background": (0, 0)}
    plain, ahead = (Story(seed, eager, False, **roomy) for eager in (0.0, 0.9))
    for story in (plain, ahead):
        story.most_samples = 1
        story.run()
        assert story.scheduler.counters()["preemptions"] == 0
    assert ahead.ends == plain.ends
    voided = np.zeros(2, np.int64)
    for id, (rows, entries, waited) in ahead.usage.items():
        without = plain.usage[id]
        more = rows - without[0]
        voided += more[:, DISCARDED, 0]
        assert (more[:, DISCARDED] >= 0).all()
        more[:, DISCARDED] = 0
        assert not more.any()
        assert np.array_equal(entries, without[1])
        assert waited == without[2]
    counters = ahead.scheduler.counters()
    assert voided.tolist() == counters["voided"]
    assert 0 < voided.sum() < sum(counters["ahead"]) / 2


@pytest.mark.parametrize("eager", [0.0, 0.9])
@pytest.mark.parametrize("seed", range(8))
def test_the_answers_are_those_without_guesses(seed: int, eager: float) -> None:
    """However many tokens the small model guesses, right or wrong: the same tokens, steps and ends,
    tokens taken back and forced, in a tight arena, under each lane policy."""
    host = 12 * (seed % 2)
    plain = Story(seed, 0.0, seed % 4 < 2, host_blocks=host * (seed % 4 < 2))
    plain.run()
    for drafts in ((1, "small"), (7, "small"), (3, "both"), (7, "lookup")):
        story = Story(seed, eager, plain.prefix_cache, drafts, host_blocks=host * (seed % 4 < 2))
        story.run()
        assert np.array_equal(story.planned, story.booked)
        assert story.ends == plain.ends
        counts, lookup = story.speculation, drafts[1] == "lookup"
        assert counts["rounds"] > 20 and counts["accepted"] > (0 if lookup else 20)
        assert (counts["looked_up"] > 0) == (drafts[1] != "small")
        assert (counts["drafted"] > 0) == (counts["reused"] > 0) == (not lookup)


class VerifiedStory(Verifying, Story):
    """A story of which most requests are verified."""


@pytest.mark.parametrize("seed", range(12))
def test_verified_answers_depend_on_the_text_alone(seed: int) -> None:
    """Not on how many tokens a pass verifies, the memory that is free, or the time: whatever lane
    runs when, the large model writes no token without a guess."""
    host = 12 * (seed % 2)
    plain: VerifiedStory | None = None
    for most, eager in ((1, 0.0), (3, 0.9), (15, 0.0), (15, 0.9)):
        story = VerifiedStory(seed, eager, seed % 4 < 2, host_blocks=host * (seed % 4 < 2))
        story.most = most
        story.run()
        assert np.array_equal(story.planned, story.booked)
        plain = plain or story
        assert story.ends == plain.ends
        assert story.seen["replaced"] > 20 and story.seen["stood"] > 20


@pytest.mark.parametrize(("prefix_cache", "host_blocks"), TIERS)
@pytest.mark.parametrize("seed", range(8))
def test_random_operations_with_verified_requests(
    seed: int, prefix_cache: bool, host_blocks: int
) -> None:
    device = VerifyingDevice(seed, prefix_cache, host_blocks=host_blocks)
    device.run()
    assert np.array_equal(device.planned, device.booked)
    assert device.seen["replaced"] > 10 and device.seen["stood"] > 10


class VerifyingDevice(Verifying, Device):
    """Random operations on requests that are verified and others."""


@pytest.mark.parametrize("seed", range(8))
def test_what_guesses_cost(seed: int) -> None:
    """Where nothing is lost and nothing is found: rows of guesses, rows of the large model that
    drew nothing, and what the small model reads for the guesses; and no pass more than without."""
    roomy = {"slabs": 80, "background": (0, 0), "lane_policy": "latency", "max_drawn_rows": 0}
    plain, spec = (Story(seed, 0.0, False, (n, "small"), **roomy) for n in (0, 4))
    for story in (plain, spec):
        story.most_samples = 1
        story.run()
        assert story.scheduler.counters()["preemptions"] == 0
    assert spec.ends == plain.ends
    for id, (rows, entries, _) in spec.usage.items():
        more = rows - plain.usage[id][0]
        assert np.array_equal(entries, plain.usage[id][1])
        assert not more[LARGE, [PROMPT, CATCHUP, SAMPLED, RECOMPUTE]].any()
        assert not more[SMALL, [SAMPLED, DISCARDED]].any()
        assert (more[:, [DISCARDED, DRAFTED, REJECTED]] >= 0).all()
        # Each draw after a wrong guess, or after the end of a run, was for a guess.
        guesses = more[SMALL, [DRAFTED, REJECTED], 0].sum() + spec.reused[id]
        assert more[LARGE, DISCARDED, 0] <= guesses
    counts = spec.speculation
    assert counts["reused"] > 0 == counts["looked_up"]
    assert counts["tokens"] > 1.2 * counts["passes"]
