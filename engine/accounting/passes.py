"""Forward passes that a request took, and what it read, from its counts."""

from __future__ import annotations

from dataclasses import dataclass

from engine._core import LARGE, RowKind
from engine.accounting.ledger import Counts, Usage
from engine.config import ROLES

DRAWN = [RowKind.sampled, RowKind.discarded, RowKind.drafted, RowKind.rejected]


@dataclass(frozen=True)
class Passes:
    """What one model did for a request, or for many of them (``+`` adds).

    A pass draws from one row, or from more where the large model verifies guesses. Rows that are
    only read ride in the pass that draws next, so passes are counted by what they draw. The one
    exception is not counted: while the small model guesses, the large one may read what it lacks
    in a pass without a draw.

    passes: forward passes.
    drawn: rows that gave a token or a guess, kept or dropped.
    drawn_keys: keys that those rows attended to.
    read: rows of prompts and catch-ups, and rows computed again.
    readers: requests for which anything was read.
    entered: tokens before the model's first draw after the other model's, over all such entries.
    entered_squared: the same, each squared.
    """

    passes: int = 0
    drawn: int = 0
    drawn_keys: int = 0
    read: int = 0
    readers: int = 0
    entered: int = 0
    entered_squared: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(
            self.passes + other.passes,
            self.drawn + other.drawn,
            self.drawn_keys + other.drawn_keys,
            self.read + other.read,
            self.readers + other.readers,
            self.entered + other.entered,
            self.entered_squared + other.entered_squared,
        )

    @classmethod
    def of(cls, usage: Usage, role: str) -> Passes:
        """Of one request's counts; ValueError on an unknown role."""
        model = ROLES.index(role)
        counts: Counts = usage.rows[model]
        drawn, drawn_keys = map(int, counts[DRAWN].sum(0))
        passes, guessed = drawn, usage.speculated
        if model == LARGE and guessed.passes:
            # Tokens that no such pass wrote were written on trial, one a pass.
            passes = guessed.passes + max(0, usage.count(role, "sampled") - guessed.tokens)
        rows, keys = map(int, usage.entries[model])
        read = int(counts[:, 0].sum()) - drawn
        # An entry after n tokens is booked as n rows and n (n + 1) / 2 keys.
        readers = int(read > 0)
        return cls(passes, drawn, drawn_keys, read, readers, rows, 2 * keys - rows)

    @property
    def entries(self) -> float:
        """How often the model began to draw after a prompt or after the other model, about.

        Exact where all entries come after as many tokens; else the fewest that the counts allow.
        At most the passes, at least ``readers``.
        """
        fewest = self.entered**2 / max(1, self.entered_squared)
        return float(min(max(fewest, self.readers), self.passes))
