"""Scores of the small model's steps by the large model, taken when it reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from engine.errors import SteerError
from engine.routing.signals import is_number

MODES = ("off", "score", "rollback")
SCORES = ("min", "mean", "ratio")
FORMS = "off, score, rollback or rollback:SCORE:MARK, SCORE one of " + ", ".join(SCORES)

# (log p_small, log p_large) of each token of a step
Pairs = Sequence[tuple[float, float]]


def step_score(kind: str, tokens: Pairs) -> float:
    """The large model's score of a small model's step; higher is better.

    ``min`` and ``mean`` of log p_large over its tokens; ``ratio``, the lowest log p_large minus
    log p_small: a token that both find unlikely may be a matter of taste.
    """
    if kind == "min":
        return min(large for _, large in tokens)
    if kind == "mean":
        return fmean(large for _, large in tokens)
    return min(large - small for small, large in tokens)


@dataclass(frozen=True)
class Audit:
    """Whether the large model scores the steps it catches up on, and whether it may undo them.

    mode: ``off``; ``score``, the log-probabilities are kept, and the head's work on those rows is
        counted; ``rollback``, in addition the earliest step whose score is below ``mark`` is rolled
        back with all that follows it, and the large model writes it. Tokens settle when they have
        passed the audit, so a stream holds them back until then.
    score: kind of score, see :func:`step_score`.
    mark: lowest score that a step may have.
    rest: after a rollback the large model writes to the end.
    """

    mode: str = "off"
    score: str = "min"
    mark: float = -6.0
    rest: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.score not in SCORES or not is_number(self.mark):
            raise SteerError(
                f"an audit must be {FORMS} with a finite MARK, got mode {self.mode!r}, score "
                f"{self.score!r}, mark {self.mark!r}"
            )

    @classmethod
    def parse(cls, text: str) -> Audit:
        """An audit from its name. SteerError on any other text."""
        mode, *rest = text.split(":")
        try:
            if mode == "rollback" and len(rest) == 2:
                return cls(mode, rest[0], float(rest[1]))
            if mode in MODES and not rest:
                return cls(mode)
        except ValueError:
            pass
        raise SteerError(f"audit must be {FORMS}, got {text!r}")

    @property
    def on(self) -> bool:
        """Whether steps are scored."""
        return self.mode != "off"

    @property
    def rolls_back(self) -> bool:
        """Whether steps can be rolled back."""
        return self.mode == "rollback"

    def doubts(self, tokens: Pairs) -> bool:
        """Whether a step is to be rolled back."""
        return self.rolls_back and step_score(self.score, tokens) < self.mark


OFF = Audit()
