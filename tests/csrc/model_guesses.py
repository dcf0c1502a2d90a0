"""Guesses of a sequence: what the small model draws before the large one, and what becomes of it.

Written from csrc/schedule/speculation.cpp's head comment. A guess is never text.
"""

from __future__ import annotations

from .kinds import DISCARDED, DRAFTED, ERROR, LARGE, NONE, OVER, REJECTED, SAMPLED, SMALL
from .model_sequence_rows import SequenceRows
from .model_text import must_stop_thinking, verdict


class GuessedSequence(SequenceRows):
    """A sequence whose rounds are kept; how a token is read comes with SequenceModel."""

    def append(self, token: int, lane: int) -> None:
        raise NotImplementedError

    def take_effect(self) -> None:
        raise NotImplementedError

    def close_round(self) -> None:
        self.open = False
        self.core.turns.changed()

    def drop_round(self) -> None:
        self.draft, self.wanted, self.open = [], 0, False

    def guess(self, token: int, keys: int) -> None:
        """The row counts as rejected until the large model draws the same."""
        self.book(SMALL, REJECTED, keys - 1, keys)
        if token < 0:
            self.core.distrust()
            self.off = True
            self.close_round()
        elif not self.pending:
            self.guessed["drafted"] += 1
            self.draft.append(token)
            if len(self.draft) >= self.wanted or self.pauses():
                self.close_round()

    def pauses(self) -> bool:
        """Would the text end after the draft, go on with forced tokens, or ask?"""
        written = self.written + self.draft
        said = verdict(self.request, written, self.steps[-1][0] - self.prompt)
        asked = said.boundary and self.rest_from < 0
        return said.end != NONE or asked or must_stop_thinking(self.request, written)

    def verify(self, draws: list[int], found: int | None) -> None:
        """The large model's draws are appended up to the first that was not guessed, or to where
        the text ends or pauses. ``found``: rows that it has after that, where some may be lost."""
        draft, length, had = self.draft, self.length, list(self.computed)
        self.drop_round()
        self.guessed["passes"] += 1
        self.guessed["rounds"] += bool(draft)
        kept, goes_on = 0, True
        while goes_on:
            if draws[kept] < 0:
                self.core.distrust()
                self.end_pending = ERROR
                break
            right = self.compare(draft[kept : kept + 1], draws[kept], kept)
            self.book_sample(LARGE, SAMPLED, length + kept)
            self.guessed["tokens"] += 1
            self.computed = [min(rows, length + kept) for rows in had]
            self.append(draws[kept], LARGE)
            kept += 1
            goes_on = right and self.length == length + kept and self.draws_on
        for more in range(kept, len(draws)):
            self.book_sample(LARGE, DISCARDED, length + more)
        if self.phase != OVER:
            rows = length + max(kept - 1, 0)
            self.computed = had
            self.cut_rows(rows)
            if found is not None and found < self.computed[LARGE] and found % self.core.size == 0:
                self.core.lose(self, LARGE, found)
            self.take_effect()

    def compare(self, guess: list[int], drawn: int, place: int) -> bool:
        self.guessed["compared"] += len(guess)
        if guess != [drawn]:
            return False
        self.guessed["accepted"] += 1
        self.accepted_at[place] += 1
        self.book(SMALL, REJECTED, self.length - 1, self.length, -1)
        self.book(SMALL, DRAFTED, self.length - 1, self.length)
        return True
