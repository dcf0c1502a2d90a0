"""Speculation: how many tokens are guessed before each pass of the large model, by what, and which
of the guesses stand.

The large model verifies the guesses. By default a guess stands if it is what the large model would
have written without it: then only time and costs change. With a lower mark the text is the small
model's where the large one believes it.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine._core import DRAFT_SOURCES, MOST_DRAFTS
from engine.errors import SteerError
from engine.routing.signals import is_number

NAME = "speculate"
FORM = f"{NAME}[:K[:SOURCE]]"
DRAFT_TOKENS = 4  # where a policy names no number
VERIFY = "verify"
VERIFY_FORM = f"{VERIFY}[:MARK[:K[:step]]]"
MARK, VERIFIED_TOKENS = 0.3, 8  # where a policy names none


@dataclass(frozen=True)
class Speculation:
    """How the large model's tokens are guessed, and which guesses stand.

    tokens: guesses before each of its passes, at most; 0: none.
    source: "small", the small model's guesses; "lookup", what followed the latest tokens where they
        occurred before in the prompt or the answer; "both", a look-up where it finds something,
        else the small model.
    mark: in [0, 1]. A guess stands if its probability to the large model is at least ``mark`` times
        that of its likeliest token (at temperature 1, before penalties, biases and filters); else
        the large model's own draw takes its place. At 1, only the large model's own draw stands. At
        0 the text is the small model's. Below 1 the small model guesses every token.
    finishes_step: where a guess does not stand, the large model writes on to the end of the step.

    SteerError on any other value, and where marks below 1 meet another source than "small".
    """

    tokens: int = DRAFT_TOKENS
    source: str = "small"
    mark: float = 1.0
    finishes_step: bool = False

    def __post_init__(self) -> None:
        whole = isinstance(self.tokens, int) and not isinstance(self.tokens, bool)
        if not is_number(self.mark, 0, 1):
            raise SteerError(f"the mark of a verification must be in [0, 1], got {self.mark!r}")
        if not whole or not 0 <= self.tokens <= MOST_DRAFTS:
            expected = (
                f"verify reads a whole number of tokens at a time, from 1 to {MOST_DRAFTS}"
                if self.verifies
                else f"speculate must be a whole number of guesses, from 0 (off) to {MOST_DRAFTS}"
            )
            raise SteerError(f"{expected}; got {self.tokens!r}")
        if self.source not in DRAFT_SOURCES:
            raise SteerError(
                f"drafts come from one of {', '.join(DRAFT_SOURCES)}; got {self.source!r}"
            )
        if self.verifies and (self.source != "small" or self.tokens == 0):
            raise SteerError(
                "with a mark below 1 the small model writes what the large one verifies: 1 token "
                f"or more from the source small; got {self.tokens} from {self.source!r}"
            )

    @classmethod
    def parse(cls, text: str) -> Speculation:
        """From ``speculate[:K[:SOURCE]]`` or ``verify[:MARK[:K[:step]]]``. SteerError on others."""
        name, *arguments = text.split(":")
        if name == VERIFY:
            return cls._verification(text, arguments)
        if name != NAME or len(arguments) > 2:
            raise SteerError(f"expected {FORM} or {VERIFY_FORM}, got {text!r}")
        count = _whole(arguments[0], text, FORM) if arguments else DRAFT_TOKENS
        return cls(count, arguments[1] if len(arguments) > 1 else "small")

    @classmethod
    def _verification(cls, text: str, arguments: list[str]) -> Speculation:
        ends = arguments[2:]
        if ends not in ([], ["step"]):
            raise SteerError(f"expected {VERIFY_FORM}, got {text!r}")
        try:
            mark = float(arguments[0]) if arguments else MARK
        except ValueError:
            raise SteerError(f"{text!r}: expected {VERIFY_FORM} with a number MARK") from None
        count = _whole(arguments[1], text, VERIFY_FORM) if len(arguments) > 1 else VERIFIED_TOKENS
        return cls(count, mark=mark, finishes_step=bool(ends))

    @property
    def by_small_model(self) -> bool:
        """Whether the small model may be asked for guesses."""
        return self.tokens > 0 and self.source != "lookup"

    @property
    def verifies(self) -> bool:
        """Whether guesses may stand that are not the large model's own draws."""
        return bool(self.mark < 1)


def _whole(tokens: str, text: str, form: str) -> int:
    if not tokens.isdecimal():
        raise SteerError(f"{text!r}: expected {form} with a whole number K, got {tokens!r}")
    return int(tokens)
