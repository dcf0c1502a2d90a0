"""Counts the rows of one request from which model writes which step. No model runs."""

from __future__ import annotations

from dataclasses import replace

from engine._core import NOBODY, SMALL, RowKind
from engine.accounting.ledger import Usage, span_counts
from engine.config import ROLES


class Books:
    """Counts the rows that the engine would compute, with lazy catch-up and no prefix cache.

    A model reads tokens when it is needed; the row of the last token gives the next one.
    """

    def __init__(self, prompt: int) -> None:
        self._usage = Usage()
        self._waited = 0
        self.computed = [0, 0]
        self._prompt = prompt
        self._last = NOBODY

    @property
    def usage(self) -> Usage:
        """The counts so far."""
        return replace(self._usage, decision_wait=self._waited)

    def _book(self, model: int, kind: RowKind, first: int, last: int) -> None:
        self._usage.rows[model, kind] += span_counts(first, last)

    def _draw(self, model: int, kind: RowKind, first: int, last: int) -> None:
        """Count rows [first, last), which each give a token, and the unread rows before them."""
        done = self.computed[model]
        self._book(model, RowKind.prompt, min(done, self._prompt), min(first, self._prompt))
        self._book(model, RowKind.catchup, max(done, self._prompt), max(first, self._prompt, done))
        self._book(model, kind, first, last)
        if self._last != model:
            self._usage.entries[model] += span_counts(0, first)
        self._last = model
        self.computed[model] = last

    def read(self, position: int) -> None:
        """The small model computes a boundary at ``position`` and its token is dropped."""
        # A kept token is counted by write().
        self._draw(SMALL, RowKind.discarded, position - 1, position)

    def wait(self, position: int) -> None:
        """A decision at ``position``, after the prompt, waits for the small model's unread rows."""
        self._waited += position - self.computed[SMALL] - 1

    def reject(self, position: int, tried: int) -> None:
        """The small model wrote ``tried`` tokens on trial, which are dropped."""
        self._draw(SMALL, RowKind.discarded, position - 1, position + tried - 1)
        self.computed[SMALL] = position

    def write(self, role: str, position: int, tokens: int) -> None:
        """The model of ``role`` writes a step of ``tokens`` tokens from ``position`` on."""
        self._draw(ROLES.index(role), RowKind.sampled, position - 1, position + tokens - 1)
