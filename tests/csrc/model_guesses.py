"""Guesses of a sequence at what the large model draws: from where, and what becomes of them.

Written from csrc/schedule/speculation.cpp's head comment. A guess is never text.
"""

from __future__ import annotations

from .kinds import DISCARDED, DRAFTED, ERROR, LARGE, NOBODY, NONE, OVER, REJECTED, SAMPLED, SMALL
from .model_lookup import look_up
from .model_sequence_rows import SequenceRows
from .model_sequence_state import MOST_BEHIND
from .model_text import must_stop_thinking, verdict


class GuessedSequence(SequenceRows):
    """A sequence whose rounds are kept; how a token is read comes with SequenceModel."""

    def append(self, token: int, lane: int) -> None:
        raise NotImplementedError

    def take_effect(self) -> None:
        raise NotImplementedError

    def open_round(self, verified: int) -> None:
        """The large model is about to draw: what is there for it to verify, or shall be?
        ``verified``: guesses that its pass still has room for."""
        there = self.computed[LARGE] + self.flying[LARGE]
        if not (self.speculates and self.draws_on) or self.wanted or self.suspended:
            return
        if there >= self.length:
            return
        if self.request.verified:
            self.open_verified(max(0, verified))
        elif verified > 0 and (self.samples == 1 or there >= self.prompt - 1):
            self.open_guessed(verified)

    def open_verified(self, verified: int) -> None:
        """The small model writes; the last of its guesses needs no row of the pass."""
        left = self.request.max_tokens - len(self.written) - 1
        self.active = SMALL
        self.core.turns.changed()
        self.guess_on(1 + min(verified, self.request.draft_tokens - 1, left))

    def open_guessed(self, verified: int) -> None:
        """From a source that has guesses, else the small model writes them."""
        most = self.request.max_tokens - len(self.written) - 1
        most = min(self.request.draft_tokens, most, verified)
        if most <= 0 or must_stop_thinking(self.request, [*self.written, NOBODY]):
            return
        (at, left), self.leftover = self.leftover, (-1, [])
        written = self.tokens[at:] if left else []
        if len(written) < len(left) and left[: len(written)] == written:
            left = left[len(written) :]
            self.guessed["reused"] += self.verify_next(left[:most])
        elif self.guesses_from("lookup") and (like := self.look_up(most)):
            self.guessed["looked_up"] += self.verify_next(like)
        elif self.has_guesser and self.length - self.computed[SMALL] <= MOST_BEHIND:
            self.guess_on(most)

    def guess_on(self, most: int) -> None:
        self.wanted, self.open, self.has_rows = most, True, True
        if self.computed[SMALL] == self.length:  # a row is left to draw from
            self.keep(SMALL, self.length - 1)

    def look_up(self, count: int) -> list[int]:
        return look_up(self.tokens, 3 if self.has_guesser else 2, count)

    def verify_next(self, guesses: list[int]) -> int:
        """These are the draft, up to where the text would pause."""
        self.draft = []
        for guess in guesses:
            self.draft.append(guess)
            if self.pauses():
                break
        self.wanted = len(self.draft)
        return self.wanted

    def keep_leftover(self, length: int) -> None:
        """The text is about to be cut: what the small model wrote there could be guessed."""
        most = self.request.draft_tokens if self.has_guesser else 0
        end = length
        while end < min(self.length, length + most) and self.writer(end) == SMALL:
            end += 1
        self.leftover = length, self.tokens[length:end]

    def writer(self, position: int) -> int:
        """The model whose step holds this token."""
        return [model for start, model in self.steps if start <= position][-1]

    def close_round(self) -> None:
        self.open, self.active = False, LARGE
        self.core.turns.changed()

    def drop_round(self) -> None:
        self.draft, self.wanted, self.open, self.has_rows = [], 0, False, False

    def guess(self, token: int, keys: int) -> None:
        """The row counts as rejected until the large model draws the same."""
        self.book(SMALL, REJECTED, keys - 1, keys)
        if token < 0:
            self.core.distrust()
            self.off = True
            if self.request.verified and not self.pending:
                self.end_pending = ERROR
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
        asked = said.boundary and (self.rest_from < 0 or self.finishes)
        return said.end != NONE or asked or must_stop_thinking(self.request, written)

    def verify(self, draws: list[int], found: int | None) -> None:
        """The large model's draws are appended up to the first that was not guessed, or to where
        the text ends or pauses. ``found``: rows that it has after that, where some may be lost."""
        draft, length, had = self.draft, self.length, list(self.computed)
        has_rows = self.has_rows
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
            if right and has_rows:
                self.book(SMALL, REJECTED, self.length - 1, self.length, -1)
                self.book(SMALL, DRAFTED, self.length - 1, self.length)
            self.book_sample(LARGE, SAMPLED, length + kept)
            if self.request.verified and (not right or self.finishes):
                self.replaced.append(length + kept)
            self.guessed["tokens"] += 1
            self.computed = [min(rows, length + kept) for rows in had]
            self.append(draws[kept], LARGE)
            kept += 1
            goes_on = right and self.length == length + kept and self.draws_on
            goes_on = goes_on and kept < len(draws)
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
        return True
