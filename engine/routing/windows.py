"""Which tokens a decision's signals come from: a step's first, the last step, or a trial."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine._core import WHOLE_ANSWER
from engine.errors import SteerError
from engine.routing.signals import Signals

_FORM = re.compile(r"(boundary|step|so-far|answer|probe:([0-9]+))(:least)?")
FORMS = "boundary, step, so-far, probe:K or answer; all but boundary also with :least"


@dataclass(frozen=True)
class Window:
    """The tokens whose signals a decision uses.

    kind: ``boundary``, the distribution of the step's first token; ``step``, the tokens of the step
        just finished, if the small model wrote it; ``so-far``, those of all its steps so far;
        ``probe``, up to ``tokens`` tokens of the next step that the small model writes on trial,
        kept or dropped by the decision; ``answer``, its whole answer on trial.
    least: summarise several tokens by each signal at its least sure token, instead of the mean.
    """

    kind: str = "boundary"
    tokens: int = 0
    least: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("boundary", "step", "so-far", "probe", "answer"):
            raise SteerError(f"unknown window {self.kind!r}; known: {FORMS}")
        whole = isinstance(self.tokens, int) and not isinstance(self.tokens, bool)
        if not whole or (self.kind == "probe") != (self.tokens > 0):
            raise SteerError(
                f"a probe, and only a probe, has 1 or more tokens; got {self.tokens!r}"
            )

    @classmethod
    def parse(cls, text: str) -> Window:
        """A window from its name. SteerError on any other text."""
        match = _FORM.fullmatch(text)
        if not match or text == "boundary:least":
            raise SteerError(f"unknown window {text!r}; known: {FORMS}")
        return cls(match[1].partition(":")[0], int(match[2] or 0), bool(match[3]))

    def __str__(self) -> str:
        name = f"probe:{self.tokens}" if self.kind == "probe" else self.kind
        return f"{name}:least" if self.least else name

    @property
    def reads(self) -> bool:
        """Whether it needs the boundary computed before the decision."""
        return self.kind not in ("step", "so-far")

    @property
    def trial_tokens(self) -> int:
        """Tokens on trial in the core's notation: 0 none, -1 the whole answer."""
        return WHOLE_ANSWER if self.kind == "answer" else self.tokens

    def summary(self, tokens: Sequence[Signals]) -> Signals | None:
        """One summary of the signals of the window's tokens; None if there are none."""
        if not tokens:
            return None
        return Signals.least(tokens) if self.least else Signals.mean(tokens)


BOUNDARY = Window()
SO_FAR = Window("so-far")
LAST_STEP = Window("step")
LEAST_OF_ANSWER = Window("answer", least=True)
