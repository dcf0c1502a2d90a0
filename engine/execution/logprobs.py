"""Log-probabilities of drawn tokens and of prompts, kept until the completion of their request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine._core import SMALL
from engine.config import ROLES
from engine.request import Step, TokenLogprobs


@dataclass(frozen=True)
class Drawn:
    """A token that a model drew for a position of a sequence. It may still be dropped later."""

    position: int
    model: int
    token: int
    logprobs: TokenLogprobs


class DrawLog:
    """The last draw of each position of one request.

    A position is drawn again after a truncation, and if the model that read a boundary does not
    write the step. The last draw is then the one whose token was kept, if any was.
    """

    def __init__(self) -> None:
        self._last: dict[int, Drawn] = {}  # in the order of positions

    def add(self, drawn: Drawn) -> None:
        """Keep a draw, and drop those at later positions: their prefix was dropped."""
        while self._last and next(reversed(self._last)) >= drawn.position:
            self._last.popitem()
        self._last[drawn.position] = drawn

    def small(self, position: int) -> float | None:
        """Log-probability of the token that the small model drew for a position, if it did."""
        drawn = self._last.get(position)
        return drawn.logprobs.logprob if drawn and drawn.model == SMALL else None

    def of(self, steps: Sequence[Step]) -> tuple[TokenLogprobs, ...]:
        """One entry for each token of the steps."""
        return tuple(
            self.entry(position, step.model, token)
            for step in steps
            for position, token in enumerate(step.token_ids, step.position)
        )

    def entry(self, position: int, model: str, token: int) -> TokenLogprobs:
        """That of a token which a model wrote at a position."""
        drawn = self._last.get(position)
        if drawn and (ROLES[drawn.model], drawn.token) == (model, token):
            return drawn.logprobs
        return TokenLogprobs(None)  # the token was not drawn


class PromptLog:
    """Log-probabilities of a prompt's tokens, each kept when its row is computed first."""

    def __init__(self, model: int, top: int, entries: dict[int, TokenLogprobs]) -> None:
        """
        Args:
            model: whose log-probabilities.
            top: likeliest tokens that are kept of each row.
            entries: by position; one for all samples of the prompt, as one of them computes a row
                for all.
        """
        self.model, self.top = model, top
        self.rows = 0  # of this sample, that went through the head only for these
        self._entries = entries

    def lacks(self, position: int) -> bool:
        """Whether no row has given this position's yet."""
        return position not in self._entries

    def add(self, position: int, entry: TokenLogprobs) -> None:
        """Keep a position's, unless it is known: a row may be computed again."""
        self.rows += 1
        self._entries.setdefault(position, replace(entry, top=entry.top[: self.top]))

    def of(self, length: int) -> tuple[TokenLogprobs, ...]:
        """One entry for each token of the prompt, without a number where none is known: nothing
        predicts the first token."""
        return tuple(self._entries.get(i, TokenLogprobs(None)) for i in range(length))
