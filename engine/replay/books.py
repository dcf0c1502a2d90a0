"""The books of one request, worked out from who writes which step. No model runs."""

from __future__ import annotations

from dataclasses import replace

from engine.accounting.ledger import ROW_KINDS, Usage, span_counts
from engine.config import ROLES

_SMALL, _LARGE = range(2)


class Books:
    """Books the rows that the engine computes, lazy catch-up, without a prefix cache.

    Tokens are read when their model is needed; the row of the last one gives the next token.
    """

    def __init__(self, prompt: int) -> None:
        self._usage = Usage()
        self._waited = 0
        self.computed = [0, 0]
        self._prompt = prompt
        self._last = -1

    @property
    def usage(self) -> Usage:
        """What was booked so far."""
        return replace(self._usage, decision_wait=self._waited)

    def _book(self, model: int, kind: str, first: int, last: int) -> None:
        self._usage.rows[model, ROW_KINDS.index(kind)] += span_counts(first, last)

    def _draw(self, model: int, kind: str, first: int, last: int) -> None:
        """Rows [first, last) that each give a token; what lies before them is read first."""
        done = self.computed[model]
        self._book(model, "prompt", min(done, self._prompt), min(first, self._prompt))
        self._book(model, "catchup", max(done, self._prompt), max(first, self._prompt, done))
        self._book(model, kind, first, last)
        if self._last != model:
            self._usage.entries[model] += span_counts(0, first)
        self._last = model
        self.computed[model] = last

    def read(self, position: int) -> None:
        """The small model stands at a boundary and draws a token that may be dropped."""
        # Kept tokens are booked by write(): only a dropped one is booked here.
        self._draw(_SMALL, "discarded", position - 1, position)

    def wait(self, position: int) -> None:
        """A decision past the prompt waits for what the small model has not read."""
        self._waited += position - self.computed[_SMALL] - 1

    def reject(self, position: int, tried: int) -> None:
        """The small model wrote so many tokens on trial, which are taken back."""
        self._draw(_SMALL, "discarded", position - 1, position + tried - 1)
        self.computed[_SMALL] = position

    def write(self, role: str, position: int, tokens: int) -> None:
        """A model writes a step of so many tokens."""
        self._draw(ROLES.index(role), "sampled", position - 1, position + tokens - 1)
