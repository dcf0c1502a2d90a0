"""Rows of a sequence: its KV, what is planned ahead of it, and the books."""

from __future__ import annotations

from .kinds import CATCHUP, DISCARDED, LARGE, PROMPT, RECOMPUTE, SMALL
from .model_sequence_state import SequenceState


class SequenceRows(SequenceState):
    """A sequence whose rows are kept, given up, bet on and booked."""

    # -- KV

    def keep(self, model: int, rows: int) -> None:
        """Gives up the rows after. A block that others may read is left whole or given back."""
        rows = min(self.computed[model], rows)
        full, part = divmod(rows, self.core.size)
        if part and (full < self.known[model] or self.core.is_shared(self, model, full)):
            rows -= part
        self.computed[model] = rows
        del self.blocks[model][self.core.blocks_for(rows) :]
        self.known[model] = min(self.known[model], full)

    def cut_rows(self, rows: int) -> None:
        """Rows from here on are not of the text: they were never computed for it."""
        for model in (SMALL, LARGE):
            self.highest[model] = min(self.highest[model], rows)
            if self.computed[model] > rows:
                self.keep(model, rows)

    def cut_draft(self, guesses: int) -> None:
        """The large lane has no room for the rest of them."""
        del self.draft[guesses:]
        self.cut_rows(self.reach)

    def give_up(self, model: int) -> None:
        """preempt(): all KV of a model, in flight when it retires."""
        self.lose_bet(model)
        if self.flying[model]:
            self.gives_up[model] = True
        else:
            self.core.lost[model] += self.computed[model]
            self.keep(model, 0)

    # -- bets

    def settle_bets(self) -> None:
        """What was planned ahead is in flight now, if a plan made now would hold just that; lost,
        if no answer to a question can make it so any more."""
        for lane, bet in enumerate(self.bets):
            if bet is None or self.flying[lane]:
                continue
            here = bet.first == self.computed[lane] and bet.attempt == self.attempt
            last = bet.first + bet.rows
            samples_as_planned = last == self.reach if bet.samples else last < self.reach
            if here and self.runnable(lane) and samples_as_planned:
                self.flying[lane], self.bets[lane] = bet.rows, None
                self.core.win(lane, bet, self.with_draft)
            elif not here or not self.may_still_win(lane, last):
                self.lose_bet(lane)

    def may_still_win(self, lane: int, last: int) -> bool:
        read_elsewhere = self.reading and self.active != lane
        if self.pending or not (self.awaits_route or read_elsewhere):
            return False
        own = self.candidate >= 0 and self.request.reader == lane
        return last == self.reach + own

    def lose_bet(self, lane: int) -> None:
        if (bet := self.bets[lane]) is None:
            return
        self.bets[lane], bet.void = None, True
        self.book(lane, DISCARDED, bet.first, bet.first + bet.rows)
        self.core.voided[lane] += bet.rows
        rows = self.computed[lane] + self.flying[lane]
        del self.blocks[lane][self.core.blocks_for(rows) :]

    # -- the books

    def book(self, lane: int, kind: int, first: int, last: int, times: int = 1) -> None:
        """Rows [first, last); each attends to the keys up to its own."""
        self.rows[lane][kind][0] += times * (last - first)
        self.rows[lane][kind][1] += times * sum(range(first + 1, last + 1))

    def book_sample(self, lane: int, kind: int, keys: int) -> None:
        self.book(lane, kind, keys - 1, keys)
        if self.last_sampler != lane:
            self.entries[lane][0] += keys - 1
            self.entries[lane][1] += sum(range(1, keys))
        self.last_sampler = lane

    def book_others(self, lane: int, first: int, last: int) -> None:
        for row in range(first, last):
            again, past = row < self.highest[lane], row >= self.prompt
            self.book(lane, RECOMPUTE if again else CATCHUP if past else PROMPT, row, row + 1)
