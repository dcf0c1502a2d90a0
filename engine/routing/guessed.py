"""Policies whose large steps are guessed ahead: verified to the letter, or by a mark."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

from engine.routing.asking import Suffixed
from engine.routing.policies import Always
from engine.routing.policy import Boundary, Decision, Policy
from engine.routing.speculation import (
    DRAFT_TOKENS,
    MARK,
    NAME,
    VERIFIED_TOKENS,
    VERIFY,
    Speculation,
)
from engine.routing.together import part_of

_LARGE = Always("large")


class _Guessed(Suffixed):
    """Another policy's decisions, and a speculation of its own."""

    policy: Policy

    def __post_init__(self) -> None:
        part_of(self.policy)
        _ = self.speculation  # checks the fields

    @property
    def asked(self) -> Policy:
        """The policy that decides."""
        return self.policy

    @property
    @abstractmethod
    def speculation(self) -> Speculation:
        """How the large model's tokens are guessed."""

    @property
    def name(self) -> str:
        """Its own name; after another policy's name and a plus, if that is not large."""
        return self.suffix if self.policy == _LARGE else super().name


@dataclass(frozen=True)
class Speculate(_Guessed):
    """A policy whose large steps are guessed ahead and verified; by default large for all of them.

    policy: decides which model writes each step, as it would without.
    tokens, source: see :class:`Speculation`.
    """

    policy: Policy = _LARGE
    tokens: int = DRAFT_TOKENS
    source: str = "small"
    suffix = NAME

    @property
    def speculation(self) -> Speculation:
        """How the large model's tokens are guessed."""
        return Speculation(self.tokens, self.source)


@dataclass(frozen=True)
class Verify(_Guessed):
    """The small model writes, the large one reads it a few tokens at a time and lets stand what it
    believes; where it does not, it writes that token itself, or the rest of the step.

    policy: decides which steps are written so; by default all. The others are the small model's,
        unread.
    mark, tokens, finishes_step: see :class:`Speculation`. The text depends on the mark, but not on
        the number of tokens that are read at a time.
    """

    policy: Policy = _LARGE
    mark: float = MARK
    tokens: int = VERIFIED_TOKENS
    finishes_step: bool = False
    suffix = VERIFY

    def decide(self, boundary: Boundary) -> Decision:
        """The other policy's decision; the reason says that a step of the large model's is verified
        instead."""
        decision = super().decide(boundary)
        if decision.model != _LARGE.model or not self.speculation.verifies:
            return decision
        where = "" if self.policy == _LARGE else f" ({decision.reason})"
        return replace(decision, reason=f"verified, mark {self.mark:g}{where}")

    @property
    def speculation(self) -> Speculation:
        """What is written before each pass of the large model, and what of it stands."""
        return Speculation(self.tokens, mark=self.mark, finishes_step=self.finishes_step)
