"""One plan of a lane, judged: which sequences are served, with how many rows, from which blocks.

While what is free would do, everything is known before. Where it would not, which KV goes is taken
as the core chose it; it must be lawful, rows may be missing only where a block is, and no sequence
gets a block after the first that got none.
"""

from __future__ import annotations

from collections import Counter

from engine._core import Scheduler, Sequence

from .model_scheduler import Flight, SchedulerModel, Span
from .model_sequence import SMALL, SequenceModel
from .model_text import NONE


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
        columns = (plan.contexts, plan.samples, plan.attempts, plan.blocks)
        self.of = {id: [c[i].tolist() for c in columns] for i, id in enumerate(self.ids)}
        self.copies = plan.copies[: plan.copied].tolist()
        self.available = core.pool.available(lane)
        self.reclaimable = core.pool.reclaimable(lane)

    def rows(self, s: SequenceModel) -> int:
        span = self.spans.get(s.id)
        return span.stop - span.start if span else 0


class Judge:
    """``free``: blocks that the lane could have without taking any from a sequence, and those of
    them that held nothing, before the plan. ``evicted``: cached blocks that it dropped."""

    def __init__(
        self, model: SchedulerModel, lane: int, view: View, free: tuple[int, int], evicted: bool
    ) -> None:
        self.model, self.lane, self.view, self.evicted = model, lane, view, evicted
        self.free, self.empty = free
        self.size, self.budget = model.size, model.shape.budget
        self.running, self.leader = list(model.running), model.leader()
        self.runnable = [s for s in self.running if s.runnable(lane)]
        self.following = {s: rows for s in self.running if (rows := s.follows(lane))}
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

    def judge(self) -> None:
        self.find_hits()
        for s in self.runnable:
            self.have[s] += self.hits[s]
        self.serve()
        self.check_shortage()
        self.check_bets()
        self.check_stops()
        if not self.view.short:
            for s in self.running:
                self.read_along(s)
        assert [s.id for s in self.planned] == self.view.ids, "who is planned, and in which order"
        assert self.view.total == sum(map(self.view.rows, self.planned)) <= self.budget
        self.check_losses()
        self.adopt()

    # -- what is found

    def find_hits(self) -> None:
        """Of the rows that were found, those that came from the cache; the rest from samples."""
        if not self.model.shape.prefix_cache:
            return
        for s in self.runnable:
            assert self.model.cache is not None or s.samples == 1, "see Machine.let_go()"
            known = self.model.cache is not None and not self.leaving
            self.hits[s] = self.known_rows(s, s.length - 1) if known else self.took[s]
        held, _ = self.model.live(self.lane)
        for s in self.runnable:
            first = s.computed[self.lane]
            for end in range(first, first + self.hits[s], self.size):
                block = self.cached_block(s, end // self.size)
                self.need += block is None or block not in held  # no longer to be had by others
                held.add(-1 if block is None else block)

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

    def to_share(self, s: SequenceModel) -> tuple[int, int]:
        """Rows of the prompt that another sample has: those in full blocks, those to be copied."""
        first, last = self.have[s], s.prompt - 1
        others = [self.have[o] for o in self.running if o.group == s.group and o is not s]
        rows = min(max(others, default=0), last)
        if rows <= first or first % self.size:
            return 0, 0
        part = (rows - first) % self.size
        return rows - first - part, part if rows == last else 0

    def follows(self, s: SequenceModel) -> bool:
        """A sample waits for an earlier one that computes the prompt that they share; not for one
        that was stopped."""
        last = s.prompt - 1
        if s.id == s.group or self.have[s] >= last:
            return False
        before = self.running[: self.running.index(s)]
        return any(
            o.group == s.group
            and o.active == self.lane
            and self.have[o] < last
            and ((o in self.runnable and not self.stopped_here(o)) or o.flying[self.lane] > 0)
            for o in before
        )

    # -- who is served

    def serve(self) -> None:
        """Decodes get their row, prefills share what these leave, memory goes in order."""
        left = self.budget - sum(s.length - self.have[s] == 1 for s in self.runnable)
        left -= list(self.following.values()).count(1)
        for s in self.running:
            if self.stopped_here(s):
                assert self.view.rows(s) == self.took[s] - self.hits[s] == 0, "planned and stopped"
                self.have[s] -= self.lost[self.lane][s]
                continue
            if s in self.following:
                left -= self.check_following(s, left)
            if s not in self.runnable:
                continue
            self.have[s] -= self.lost[self.lane][s]
            rows, shared = self.view.rows(s), self.took[s] - self.hits[s]
            span = s.length - self.have[s]
            wanted = 1 if span == 1 else min(span, left)
            if self.follows(s) or wanted <= 0:
                assert rows == shared == 0, "it had to wait"
                continue
            self.check_shared(s, shared)
            self.have[s] += shared
            self.check_rows(s, rows, min(wanted, s.length - self.have[s]))
            if span > 1:
                left -= rows
            if rows:
                self.planned.append(s)
        assert self.view.short == self.starved, "short of memory"

    def stopped_here(self, s: SequenceModel) -> bool:
        return self.view.after[s.id].suspended and not s.suspended

    def check_following(self, s: SequenceModel, left: int) -> int:
        """Rows after those in flight, while there are free blocks. Returns those that
        others cannot have."""
        span, rows = self.following[s], self.view.rows(s)
        here = s.computed[self.lane] + s.flying[self.lane]
        wanted = 1 if span == 1 else min(span, left)
        blocks = self.model.blocks_for
        if s.may_lose[self.lane] and not rows:
            # Others may have taken KV that it is about to give up; if not, it may lack a block.
            needs = blocks(here + wanted) - blocks(here)
            if self.view.short and needs > 0 and self.comes_last(s):
                self.need, self.starved = self.need + needs, True
            return 0
        if wanted <= 0 or self.starved:
            assert rows == 0, "planned ahead though memory is short"
            return 0
        self.need += blocks(here + wanted) - blocks(here)
        assert rows <= wanted
        if rows < wanted:
            assert (here + rows) % self.size == 0, "rows are missing though there is room"
            self.starved = True
        if rows:
            self.planned.append(s)
            self.model.ahead[self.lane] += rows
        return rows if span > 1 else 0

    def comes_last(self, s: SequenceModel) -> bool:
        """Has no sequence after it in the order got a block, or rows planned ahead?"""
        for o in self.running[self.running.index(s) + 1 :]:
            here, rows = o.computed[self.lane] + o.flying[self.lane], self.view.rows(o)
            more = self.model.blocks_for(here + rows) > self.model.blocks_for(here)
            if more or (rows and o in self.following):
                return False
        return True

    def check_shared(self, s: SequenceModel, shared: int) -> None:
        assert not (self.starved and shared % self.size), "a block after somebody got none"
        full, part = self.to_share(s)
        if self.lossy or self.leaving:  # which rows the others had then is not known
            full, part = shared - shared % self.size, shared % self.size
        self.need += part > 0
        if part and not self.starved and self.need <= self.free:
            assert shared == full + part, "the partly filled block of the prompt is copied"
        assert shared in (full, full + part), "what samples share"

    def check_rows(self, s: SequenceModel, rows: int, wanted: int) -> None:
        here = self.have[s]
        needs = self.model.blocks_for(here + wanted) - self.model.blocks_for(here)
        got = self.model.blocks_for(here + rows) - self.model.blocks_for(here)
        self.need += needs
        if needs:
            self.askers.append(s)
        assert rows <= wanted
        assert not (self.starved and got), "a block after somebody earlier got none"
        if rows < wanted:
            assert (here + rows) % self.size == 0, "rows are missing though there is room"
            self.starved = True

    def check_shortage(self) -> None:
        """No sequence lacks or loses anything while the free blocks would do."""
        if self.need <= self.free:
            assert not self.starved and not self.lossy, "taken though there was enough"
        if self.starved:
            assert self.view.available == self.view.reclaimable == 0, "there was some left"

    def read_along(self, s: SequenceModel) -> None:
        """What the other model writes, with what is left over."""
        lane, took, rows = self.lane, self.took[s], self.view.rows(s)
        if s in self.runnable or s in self.following:
            return
        lag = s.settled - 1 - (s.computed[lane] - self.lost[lane][s])
        wants = self.model.shape.background[lane]
        unread = lane == SMALL and s.request.reader != SMALL
        busy = s.active == lane or s.flying[lane] or s.bets[lane] or s.pending or s.suspended
        if busy or not wants or s.rest_from >= 0 or unread or lag < wants:
            assert took == rows == 0, "read along without need"
            return
        self.have[s] -= self.lost[lane][s]
        trusted = self.model.cache is not None and not self.leaving
        if trusted and not self.evicted and not self.lossy:
            assert took == self.known_rows(s, s.settled - 1)
        self.hits[s] = took
        self.have[s] += took
        before = sum(map(self.view.rows, self.planned))
        wanted = min(s.settled - 1 - self.have[s], self.budget - before)
        if self.have[s] < s.highest[lane]:
            wanted = 0  # it was taken away once
        assert rows <= max(wanted, 0)
        if rows < wanted:
            assert (self.have[s] + rows) % self.size == 0 and self.view.available == 0
        if rows:
            self.planned.append(s)
            self.model.background[lane] += rows

    # -- what it costs others

    def may_lose(self, s: SequenceModel, model: int) -> bool:
        """The progress rule: what is not missed, what sequences after an asker have, and for the
        leader what no sequence works on."""
        if s.end_pending != NONE or s.done_with(model):
            return True
        idle = s.active != model and self.leader in self.askers
        return idle or any(asker.order < s.order for asker in self.askers)

    def check_bets(self) -> None:
        """Whose KV is taken, now or when it retires, has nothing planned ahead on it any more."""
        for s in self.running:
            for model, bet in enumerate(s.bets):
                if bet and not self.view.after[s.id].ahead[model]:
                    lawful = self.stopped_here(s) or self.may_lose(s, model)
                    assert self.need > self.free and lawful, "unlawful loss"
                    s.lose_bet(model)

    def check_stops(self) -> None:
        """Who misses KV that it had is stopped, and who is stopped stands after one who asked."""
        for s in self.running:
            stopped = self.view.after[s.id].suspended
            after_leader = self.leader is not None and self.leader.order < s.order
            for model in (0, 1):
                missed = self.lost[model][s] and s.end_pending == NONE and not s.done_with(model)
                assert stopped or not (missed and after_leader), "it lost KV and goes on"
            if self.stopped_here(s):
                assert self.need > self.free, "stopped though there was enough"
                assert any(asker.order < s.order for asker in self.askers), "stopped for nobody"
                s.suspended = True

    def check_losses(self) -> None:
        for model in (0, 1):
            for s, rows in self.lost[model].items():
                assert not rows or self.may_lose(s, model), "unlawful loss"
                self.model.lost[model] += rows
        if self.need <= self.free:
            return
        other = 1 - self.lane
        for s in self.running:
            s.may_lose[other] |= s.flying[other] > 0 and self.may_lose(s, other)

    # -- what is so from now on

    def adopt(self) -> None:
        model, lane = self.model, self.lane
        if self.evicted or self.starved or self.lossy:
            model.distrust()
        for s in self.running:
            other, rows = 1 - lane, self.view.after[s.id].computed
            if self.lost[other][s]:
                s.keep(other, rows[other])
            self.adopt_rows(s, rows[lane])
        flight = Flight(sources=[source for source, _ in self.view.copies])
        self.check_copies()
        busy, _ = model.live(lane)
        for s in self.planned:
            self.adopt_table(s, busy)
        for s in self.planned:
            flight.spans.append(self.fly(s))
        behind = bool(model.flights[lane])
        if self.planned:
            model.flights[lane].append(flight)
            model.ticks[lane] += 1
        if self.planned or not behind:
            model.turns.planned(lane, len(self.planned), model.ready())

    def adopt_rows(self, s: SequenceModel, rows: int) -> None:
        """The rows that are there: found, lost or as before."""
        lane, took, hits = self.lane, self.took[s], self.hits[s]
        most = s.computed[lane] + (hits if s in self.runnable else 0)
        s.highest[lane] = max(s.highest[lane], most, rows)
        if self.lost[lane][s] and took:
            s.blocks[lane] = []
        elif self.lost[lane][s]:
            s.keep(lane, rows)
        if hits:
            s.known[lane] = (s.computed[lane] + hits) // self.size
        s.known[lane] = min(s.known[lane], (rows - (took - hits)) // self.size)
        s.computed[lane] = rows
        s.cached[lane] += took
        for index in range(len(s.blocks[lane]), self.model.blocks_for(rows)):
            known = self.cached_block(s, index) if index < s.known[lane] else None
            s.blocks[lane].append(known)
        self.model.hits[lane] += hits // self.size
        self.model.shared[lane] += (took - hits) // self.size
        self.model.copied[lane] += (took - hits) % self.size > 0

    def check_copies(self) -> None:
        """Each copy reads what a sample has and writes to the end of what another found."""
        lane, size = self.lane, self.size
        copying = [s for s in self.running if (self.took[s] - self.hits[s]) % size]
        assert len(self.view.copies) == len(copying)
        origin = {target: source for source, target in self.view.copies}
        assert not origin.keys() & set(origin.values()), "a copy of what another copy writes"
        for s, (source, target) in zip(copying, self.view.copies, strict=True):
            index = s.computed[lane] // size
            others = [o for o in self.running if o.group == s.group and o is not s]
            tables = [t for o in others for t in (self.tables[o], o.blocks[lane])]
            # What this plan fills is read where it comes from: copies run all at once.
            origins = [[origin.get(b, b) for b in t[index : index + 1]] for t in tables]
            assert any(t in ([source], [None]) for t in origins)
            assert target not in self.model.live(lane)[0], "a copy into a block that is in use"
            s.blocks[lane][index] = target
            self.copy(source, target)

    def copy(self, source: int, target: int) -> None:
        shadow = self.model.shadow
        for offset in range(self.size):
            digest = shadow.read(self.lane, source * self.size + offset)
            shadow.write(self.lane, target * self.size + offset, -1 if digest is None else digest)

    def adopt_table(self, s: SequenceModel, busy: set[int]) -> None:
        """What was there stays, what was found is what another holds, what is new was free."""
        lane, known = self.lane, s.blocks[self.lane]
        count = self.model.blocks_for(s.computed[lane] + s.flying[lane] + self.view.rows(s))
        table = self.view.of[s.id][3]
        assert not any(table[count:]), "a table is padded with zeros"
        for index, block in enumerate(table[:count]):
            if index >= len(known):
                assert block not in busy, "a block that is in use"
            elif known[index] is not None:
                assert block == known[index], "a block of a table has changed"
        s.blocks[lane] = list(table[:count])
        busy.update(table[:count])

    def fly(self, s: SequenceModel) -> Span:
        """The rows follow what is computed, and what they build on is there."""
        lane, view, rows = self.lane, self.view, self.view.rows(s)
        span, (context, samples, attempt, table) = view.spans[s.id], view.of[s.id]
        first = s.computed[lane] + s.flying[lane]
        last = first + rows
        tokens = s.tokens[first:last]
        if last > s.length:  # what it samples in the plan before
            before = [span.sequence for span in self.model.flights[lane][0].spans]
            tokens.append(-1 - before.index(s))
        assert view.positions[span] == list(range(first, last))
        assert view.tokens[span] == tokens
        places = [table[p // self.size] * self.size + p % self.size for p in range(last)]
        assert view.slots[span] == places[first:]
        assert (context, bool(samples), attempt) == (last, last >= s.length, s.attempt)
        made = Span(s, bool(samples), first, rows, places, [], s.attempt)
        if s in self.following:
            s.bets[lane] = made
        else:
            s.flying[lane] = rows
        self.model.write(lane, made, s.tokens)
        self.model.planned[lane][0] += rows
        self.model.planned[lane][1] += sum(range(first + 1, last + 1))
        return made
