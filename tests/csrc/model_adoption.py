"""What is so after a plan: rows that are found, copied and in flight, tables of blocks."""

from __future__ import annotations

from .model_plan_state import Plan
from .model_scheduler import Flight, Span
from .model_sequence import SequenceModel


class AdoptedPlan(Plan):
    """A plan whose rows and blocks the model takes over, each one checked."""

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
        table = self.view.of[s.id][-1]
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
        span, (context, samples, guesses, attempt, table) = view.spans[s.id], view.of[s.id]
        first = s.computed[lane] + s.flying[lane]
        last = first + rows
        tokens = s.with_draft[first:last]
        if last > s.reach:  # what it samples in the plan before
            before = [span.sequence for span in self.model.flights[lane][0].spans]
            tokens.append(-1 - before.index(s))
        assert view.positions[span] == list(range(first, last))
        assert view.tokens[span] == tokens
        places = [table[p // self.size] * self.size + p % self.size for p in range(last)]
        assert view.slots[span] == places[first:]
        drafts = s.drafts(lane)
        drawn_from = max(first, (s.reach if drafts else s.length) - 1)
        assert (context, samples, attempt) == (last, max(0, last - drawn_from), s.attempt)
        assert bool(guesses) == (drafts and samples > 0)
        made = Span(s, samples, first, rows, places, [], s.attempt)
        if s in self.following:
            s.bets[lane] = made
        else:
            s.flying[lane] = rows
        self.model.write(lane, made, s.with_draft)
        self.model.planned[lane][0] += rows
        self.model.planned[lane][1] += sum(range(first + 1, last + 1))
        return made
