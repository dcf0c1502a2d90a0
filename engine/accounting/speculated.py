"""What guessing the large model's tokens has cost and brought."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import zip_longest
from typing import Any


@dataclass(frozen=True)
class Speculated:
    """Counts of one request, or of many, for which tokens were guessed; all zero for others.

    passes: forward passes in which the large model drew text, with guesses or without.
    tokens: tokens of the text that these passes wrote.
    rounds: passes with guesses.
    drafted: guesses that the small model drew for a round.
    looked_up: guesses that were found in the prompt or the text.
    reused: guesses that the small model had written as text which was taken back.
    compared: guesses that the large model's draws were compared with: those of a round up to the
        first wrong one, and none after the text's end.
    accepted: guesses that were right.
    accepted_at: the same by their place in the round, from 0.
    """

    passes: int = 0
    tokens: int = 0
    rounds: int = 0
    drafted: int = 0
    looked_up: int = 0
    reused: int = 0
    compared: int = 0
    accepted: int = 0
    accepted_at: tuple[int, ...] = ()

    @classmethod
    def of(cls, counts: Mapping[str, Any]) -> Speculated:
        """From a mapping of these names. TypeError on another name, or on no mapping."""
        if not isinstance(counts, Mapping):
            raise TypeError(f"speculated must map names to counts, got {counts!r}")
        places = tuple(map(int, counts.get("accepted_at", ())))
        while places and not places[-1]:
            places = places[:-1]
        numbers = {name: int(n) for name, n in counts.items() if name != "accepted_at"}
        return cls(**numbers, accepted_at=places)

    def __add__(self, other: Speculated) -> Speculated:
        numbers = {
            each.name: getattr(self, each.name) + getattr(other, each.name)
            for each in fields(self)
            if each.name != "accepted_at"
        }
        places = zip_longest(self.accepted_at, other.accepted_at, fillvalue=0)
        return Speculated(**numbers, accepted_at=tuple(a + b for a, b in places))

    @property
    def acceptance(self) -> float:
        """Share of right guesses among those compared; 0 without any."""
        return self.accepted / max(1, self.compared)

    @property
    def tokens_per_pass(self) -> float:
        """Tokens of the text that a pass of the large model wrote, on average."""
        return self.tokens / max(1, self.passes)

    def to_json(self) -> dict[str, Any]:
        """The counts by name."""
        return asdict(self)
