"""One plan of a lane, judged: which sequences are served, with how many rows, from which blocks.

While what is free would do, everything is known before. Where it would not, which KV goes is taken
as the core chose it; it must be lawful, rows may be missing only where a block is, and no sequence
gets a block after the first that got none.
"""

from __future__ import annotations

from .kinds import NONE, SMALL
from .model_adoption import AdoptedPlan
from .model_sequence import SequenceModel
from .model_sequence_state import MOST_BEHIND


class Judge(AdoptedPlan):
    """A plan against the rules: what it serves, and what that costs others."""

    def judge(self) -> None:
        self.find_hits()
        for s in self.runnable:
            self.have[s] += self.hits[s]
        self.serve()
        self.check_shortage()
        self.check_bets()
        self.check_stops()
        self.check_drafts()
        if not self.view.short:
            for s in self.running:
                self.read_along(s)
        assert [s.id for s in self.planned] == self.view.ids, "who is planned, and in which order"
        assert self.view.total == sum(map(self.view.rows, self.planned)) <= self.budget
        self.check_losses()
        self.adopt()

    # -- what samples share

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
        spans = {s: s.text_end(self.lane) - self.have[s] for s in self.runnable}
        left = self.budget - list(spans.values()).count(1)
        left -= list(self.following.values()).count(1)
        kept = self.size if any(span != 1 for span in spans.values()) else 0  # not for guesses
        spare = self.model.guesses_left()
        for s in self.running:
            if self.stopped_here(s):
                assert self.view.rows(s) == self.took[s] - self.hits[s] == 0, "planned and stopped"
                self.have[s] -= self.lost[self.lane][s]
                continue
            if s in self.following:
                used = self.check_following(s, left)
                left, kept = left - used, 0 if used else kept
            if s not in self.runnable:
                continue
            self.have[s] -= self.lost[self.lane][s]
            rows, shared = self.view.rows(s), self.took[s] - self.hits[s]
            span = s.text_end(self.lane) - self.have[s]
            guesses = max(0, min(self.verifying[s], spare))
            wanted = min(span + guesses, left)
            if span == 1:
                wanted = 1 + min(max(left - kept, 0), guesses)
            if self.follows(s) or wanted <= 0:
                assert rows == shared == 0, "it had to wait"
                continue
            self.check_shared(s, shared)
            self.have[s] += shared
            text = min(wanted, s.text_end(self.lane) - self.have[s])
            self.check_rows(s, min(rows, text), text)
            if self.guesses[s] and not s.open:
                self.check_guesses(s, rows - text, wanted - text)
                spare -= max(0, rows - text)
            if rows:
                left -= rows - (span == 1)
                kept = kept if span == 1 else 0
                self.planned.append(s)
        assert self.view.short == self.starved, "short of memory"

    def check_guesses(self, s: SequenceModel, rows: int, wanted: int) -> None:
        """Those that are verified: after the whole text, in blocks that none has to give up."""
        if self.have[s] + self.view.rows(s) < s.length:
            assert len(s.draft) == self.guesses[s], "guesses were dropped before their turn"
            return
        wanted, blocks = min(wanted, self.verifying[s]), self.model.blocks_for
        got = blocks(s.length + rows) - blocks(s.length)
        assert len(s.draft) - s.request.verified == rows <= wanted
        assert not (self.starved and got), "a block for a guess though memory is short"
        self.need += got
        if rows < wanted:
            assert (s.length + rows) % self.size == 0, "guesses are missing though there is room"
            assert self.starved or self.need >= self.free, "there was a block left"

    def check_drafts(self) -> None:
        """Guesses are written with what all others leave; a draft that gets nothing is closed."""
        for s in self.drafting:
            rows = self.view.rows(s)
            before = sum(map(self.view.rows, self.planned))
            if s.suspended:
                assert rows == self.took[s] == 0, "stopped, and yet it guesses"
                continue
            if s.flying[self.lane]:
                wanted = min(s.follows(self.lane), self.budget - before)
                wanted = 0 if self.starved or s.may_lose[self.lane] else wanted
                if rows:
                    self.model.ahead[self.lane] += rows
                    self.following[s] = rows
                first = s.computed[self.lane] + s.flying[self.lane]
                wanted = max(wanted, rows if s.may_lose[self.lane] else 0)
            else:
                self.have[s] -= self.lost[self.lane][s]
                self.find_late(s, s.length - 1)
                first = self.have[s]
                wanted = max(0, min(s.reach - first, self.budget - before))
                wanted = 0 if s.reach - first > MOST_BEHIND else wanted
            assert rows <= wanted
            if rows < wanted and not (s.flying[self.lane] and self.starved):
                again = first < s.highest[self.lane]
                nothing = self.view.available == 0 and (again or self.view.reclaimable == 0)
                assert (first + rows) % self.size == 0, "rows are missing though there is room"
                assert self.starved or nothing, "there was a block left for a guess"
            if rows:
                self.planned.append(s)
        for s in self.running:
            waits = s.open and not s.request.verified and s not in self.planned
            if waits and self.lane == SMALL and not s.flying[SMALL]:
                s.close_round()

    def find_late(self, s: SequenceModel, limit: int) -> None:
        """Rows from the cache, as it is after all others were served."""
        trusted = self.model.cache is not None and not self.leaving
        if trusted and not self.evicted and not self.lossy:
            assert self.took[s] == self.known_rows(s, limit)
        self.hits[s] = self.took[s]
        self.have[s] += self.took[s]

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
        full, part = (0, 0) if s.text_end(self.lane) < s.prompt else self.to_share(s)
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
        if s in self.runnable or s in self.following or s in self.planned:
            return
        lag = s.settled - 1 - (s.computed[lane] - self.lost[lane][s])
        wants = self.model.shape.background[lane]
        unread = s.rest_from >= 0 or (lane == SMALL and s.request.reader != SMALL) or not wants
        lags = lane == SMALL and s.has_guesser and s.reach - s.computed[lane] > MOST_BEHIND
        wants, unread = (1, False) if lags else (wants, unread)
        busy = (
            s.active == lane
            or s.is_verified
            or s.flying[lane]
            or s.bets[lane]
            or s.pending
            or s.suspended
        )
        tried = s in self.drafting  # it has found already what it could
        if busy or unread or lag < wants:
            assert (took == 0 or tried) and rows == 0, "read along without need"
            return
        if not tried:
            self.have[s] -= self.lost[lane][s]
            self.find_late(s, s.settled - 1)
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
        # KV may have been lost before it was cut with its guess.
        self.model.may_have_lost |= any(len(s.draft) < n for s, n in self.guesses.items())
        other = 1 - self.lane
        for s in self.running:
            s.may_lose[other] |= s.flying[other] > 0 and self.may_lose(s, other)
