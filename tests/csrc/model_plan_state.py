"""A plan as the core shows it, and what the model knows as it is made."""

from __future__ import annotations

from collections import Counter

from engine._core import Scheduler, Sequence

from .model_scheduler import SchedulerModel
from .model_sequence import SequenceModel


class View:
    """A plan as the core shows it, and the core's view of every sequence after it."""

    def __init__(self, core: Scheduler, lane: int, buffer: int, after: dict[int, Sequence]) -> None:
        plan = core.buffers(lane, buffer)
        self.after, self.short, self.total = after, plan.short_of_memory, plan.rows
        starts = plan.starts[: plan.sequences + 1].tolist()
        self.ids = plan.ids[: plan.sequences].tolist()
        self.spans = {id: slice(starts[i], starts[i + 1]) for i, id in enumerate(self.ids)}
        self.positions, self.tokens = plan.positions.tolist(), plan.tokens.tolist()
        self.slots = plan.slots.tolist()
        columns = (plan.contexts, plan.samples, plan.guesses, plan.attempts, plan.blocks)
        self.of = {id: [c[i].tolist() for c in columns] for i, id in enumerate(self.ids)}
        self.copies = plan.copies[: plan.copied].tolist()
        self.available = core.pool.available(lane)
        self.reclaimable = core.pool.reclaimable(lane)

    def rows(self, s: SequenceModel) -> int:
        span = self.spans.get(s.id)
        return span.stop - span.start if span else 0


class Plan:
    """A plan of a lane, and what the model knows as it is made.

    ``free``: blocks that the lane could have without taking any from a sequence, and those of
    them that held nothing, before the plan. ``evicted``: cached blocks that it dropped."""

    def __init__(
        self, model: SchedulerModel, lane: int, view: View, free: tuple[int, int], evicted: bool
    ) -> None:
        self.model, self.lane, self.view, self.evicted = model, lane, view, evicted
        self.free, self.empty = free
        self.size, self.budget = model.size, model.shape.budget
        self.running, self.leader = list(model.running), model.leader()
        self.drafting = [s for s in self.running if s.drafts_aside(lane)]
        others = [s for s in self.running if s not in self.drafting]
        self.runnable = [s for s in others if s.runnable(lane)]
        self.following = {s: rows for s in others if (rows := s.follows(lane))}
        self.cut_drafts(view)
        now = {s: view.after[s.id] for s in self.running}
        # Rows that were found instead of computed, and rows that others took.
        self.took = Counter({s: now[s].cached[lane] - s.cached[lane] for s in self.running})
        self.lost = [
            Counter({s: s.computed[m] - now[s].computed[m] for s in self.running}) for m in (0, 1)
        ]
        self.lost[lane].update(self.took)
        assert min([0, *self.took.values(), *self.lost[0].values(), *self.lost[1].values()]) == 0
        self.lossy = any(self.lost[0].values()) or any(self.lost[1].values())
        self.hits: Counter[SequenceModel] = Counter()
        self.have = {s: s.computed[lane] for s in self.running}
        self.tables = {s: list(s.blocks[lane]) for s in self.running}
        self.need = 0  # blocks
        self.starved = False
        # Blocks that go to the other model when the batch in flight has retired are not taken up.
        self.leaving = bool(model.flights[lane]) and any(s.may_lose[lane] for s in self.running)
        self.askers: list[SequenceModel] = []  # who needs a block
        self.planned: list[SequenceModel] = []

    def cut_drafts(self, view: View) -> None:
        """Guesses that are gone after it; ``guesses`` has their number before."""
        self.guesses = {s: len(s.draft) for s in self.running}
        self.verifying = {s: s.verifying(self.lane) for s in self.running}
        for s in self.running:
            left = len(view.after[s.id].draft)
            assert left == len(s.draft) or (left < len(s.draft) and s in self.runnable)
            if left < len(s.draft):
                s.cut_draft(left)

    # -- what is found

    def find_hits(self) -> None:
        """Of the rows that were found, those that came from the cache; the rest from samples."""
        if not self.model.shape.prefix_cache:
            return
        for s in self.runnable:
            assert self.model.cache is not None or s.samples == 1, "see Machine.let_go()"
            known = self.model.cache is not None and not self.leaving
            self.hits[s] = self.known_rows(s, self.findable(s)) if known else self.took[s]
        held, _ = self.model.live(self.lane)
        for s in self.runnable:
            first = s.computed[self.lane]
            for end in range(first, first + self.hits[s], self.size):
                block = self.cached_block(s, end // self.size)
                self.need += block is None or block not in held  # no longer to be had by others
                held.add(-1 if block is None else block)

    def findable(self, s: SequenceModel) -> int:
        return min(s.length, s.text_end(self.lane)) - 1

    def cached_block(self, s: SequenceModel, index: int) -> int | None:
        cache = self.model.cache
        prefix = tuple(s.tokens[: (index + 1) * self.size])
        return None if cache is None else cache[self.lane].get(prefix)

    def known_rows(self, s: SequenceModel, limit: int) -> int:
        """Rows of the next blocks that the cache knows, up to a limit: one is left to compute."""
        first = end = self.have[s]
        if first != s.known[self.lane] * self.size:
            return 0
        while end + self.size <= limit and self.cached_block(s, end // self.size) is not None:
            end += self.size
        return end - first
