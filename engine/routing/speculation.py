"""Speculation: how many tokens are guessed before each pass of the large model, and by what.

The large model verifies the guesses, and writes what it would have written without them: only time
and costs change.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine._core import DRAFT_SOURCES, MOST_DRAFTS
from engine.errors import SteerError

NAME = "speculate"
FORM = f"{NAME}[:K[:SOURCE]]"
DRAFT_TOKENS = 4  # where a policy names no number


@dataclass(frozen=True)
class Speculation:
    """How the large model's tokens are guessed.

    tokens: guesses before each of its passes, at most; 0: none.
    source: "small", the small model's guesses; "lookup", what followed the latest tokens where they
        occurred before in the prompt or the answer; "both", a look-up where it finds something,
        else the small model.

    SteerError on any other value.
    """

    tokens: int = DRAFT_TOKENS
    source: str = "small"

    def __post_init__(self) -> None:
        whole = isinstance(self.tokens, int) and not isinstance(self.tokens, bool)
        if not whole or not 0 <= self.tokens <= MOST_DRAFTS:
            raise SteerError(
                f"speculate must be a whole number of guesses, from 0 (off) to {MOST_DRAFTS}; got "
                f"{self.tokens!r}"
            )
        if self.source not in DRAFT_SOURCES:
            raise SteerError(
                f"drafts come from one of {', '.join(DRAFT_SOURCES)}; got {self.source!r}"
            )

    @classmethod
    def parse(cls, text: str) -> Speculation:
        """From ``speculate``, ``speculate:K`` or ``speculate:K:SOURCE``. SteerError on others."""
        name, *arguments = text.split(":")
        if name != NAME or len(arguments) > 2:
            raise SteerError(f"expected {FORM}, got {text!r}")
        if not arguments:
            return cls()
        tokens, *source = arguments
        if not tokens.isdecimal():
            raise SteerError(f"{text!r}: expected {FORM} with a whole number K, got {tokens!r}")
        return cls(int(tokens), *source)

    @property
    def by_small_model(self) -> bool:
        """Whether the small model may be asked for guesses."""
        return self.tokens > 0 and self.source != "lookup"
