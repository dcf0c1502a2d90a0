"""The prefix cache of many requests with equal prompts in a full arena: all come to an end."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from engine._core import Scheduler

from .kinds import LARGE, NOBODY, SMALL


class Crowd:
    """Requests with equal prompts in an arena that holds one of them, on both lanes."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.tokens = self.random.choice([1, 2, 3, 4])
        slots = self.random.choice([(1, 1), (2, 1), (3, 1), (1, 2)])
        slabs, count = self.random.randint(4, 10), self.random.randint(2, 5)
        self.room = slabs * min(slots) * self.tokens
        self.scheduler = Scheduler(
            slabs=slabs,
            slots=slots,
            block_tokens=self.tokens,
            max_context=self.room,
            max_sequences=count,
            max_tick_tokens=count + self.random.randint(1, 8),
            prefix_cache=True,
            delimiters=[b"\n"],
            token_bytes=[b"a"] * 20 + [b"\n"],
        )
        self.text = [self.random.randrange(20) for _ in range(self.room)]
        self.alive = 0
        self.seen: dict[int, set[int]] = {}  # rows of the scored model, by the first sample's id
        self.scored: dict[int, tuple[int, int, int]] = {}  # first sample, model, rows to see

    def add(self) -> None:
        """Prompt and answer fill the arena to the last row."""
        prompt = self.text[: self.random.randint(1, self.room - 2)]
        whole = self.random.random() < 0.7
        model = self.random.choice([NOBODY, NOBODY, SMALL, LARGE])
        samples = self.random.choice([1, 1, 2])
        first = self.scheduler.add(
            prompt,
            max_tokens=self.room - len(prompt) if whole else 1,
            priority=self.random.randint(0, 2),
            reader=self.random.choice([NOBODY, SMALL]),
            scored=model,
            samples=samples,
        )
        self.alive += samples
        self.seen[first] = set()
        if model != NOBODY:
            self.scored |= dict.fromkeys(
                range(first, first + samples), (first, model, len(prompt) - 1)
            )

    def round(self) -> bool:
        """Both lanes once; False if nothing moved."""
        moved = False
        for lane in (SMALL, LARGE):
            for kind, id, _ in self.scheduler.take_events():
                moved = True
                if kind:
                    self.scheduler.forget(id)
                    self.scored.pop(id, None)
                    self.alive -= 1
                elif self.scheduler.sequence(id).awaits_route:
                    self.scheduler.route(id, self.random.randint(0, 1))
            count = self.scheduler.plan(lane)
            if count:
                moved = True
                self.note(lane, count)
                contexts = self.scheduler.buffers(lane).contexts[:count].tolist()
                drawn = [20 if c % 7 == 0 else self.text[c % self.room] for c in contexts]
                self.scheduler.commit(lane, np.array(drawn, np.int32))
            self.scheduler.check_integrity()
            self.check_scored()
        return moved

    def note(self, lane: int, count: int) -> None:
        """Note the rows of a plan for the requests that this model scores."""
        plan = self.scheduler.buffers(lane)
        for i, id in enumerate(plan.ids[:count].tolist()):
            first, model, _ = self.scored.get(id, (0, NOBODY, 0))
            if model == lane:
                rows = plan.positions[plan.starts[i] : plan.starts[i + 1]].tolist()
                self.seen[first].update(rows)

    def check_scored(self) -> None:
        """The rows that stand were computed by a sample of the prompt, none was only found."""
        for id, (first, model, prompt) in self.scored.items():
            stand = min(self.scheduler.sequence(id).computed[model], prompt)
            assert self.seen[first].issuperset(range(stand))


@pytest.mark.parametrize("block", range(10))
def test_equal_prompts_in_a_full_arena_come_to_an_end(block: int):
    """A sequence may hold a private block in front of shared ones: it can be taken all the same."""
    for seed in range(60 * block, 60 * block + 60):
        crowd = Crowd(seed)
        left, idle = crowd.random.randint(3, 8), 0
        for _ in range(6000):
            if left and crowd.random.random() < 0.3:
                crowd.add()
                left -= 1
            idle = 0 if crowd.round() or not crowd.alive else idle + 1
            assert idle < 3, f"seed {seed}: no lane can move"
            if not left and not crowd.alive:
                break
        assert not left and not crowd.alive, f"seed {seed} does not come to an end"
