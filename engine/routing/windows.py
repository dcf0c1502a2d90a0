"""Which tokens a decision looks at: a step's first one, the last step, or some written on trial."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import SteerError
from engine.routing.signals import Signals

_WHOLE_ANSWER = -1
_FORM = re.compile(r"(boundary|step|answer|probe:([0-9]+))(:least)?")
FORMS = "boundary, step, step:least, probe:K, probe:K:least, answer or answer:least"


@dataclass(frozen=True)
class Window:
    """What the signals of a decision are taken from.

    kind: ``boundary``, the distribution of the step's first token; ``step``, the tokens of the step
        just finished, if the small model wrote it; ``probe``, up to ``tokens`` tokens of the step
        that the small model writes on trial, kept or taken back by the decision; ``answer``, its
        whole answer, likewise.
    least: of several tokens take each statistic where it is least sure, instead of the mean.
    """

    kind: str = "boundary"
    tokens: int = 0
    least: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("boundary", "step", "probe", "answer"):
            raise SteerError(f"unknown window {self.kind!r}; known: {FORMS}")
        if not isinstance(self.tokens, int) or (self.kind == "probe") != (self.tokens > 0):
            raise SteerError(f"a probe, and only a probe, has 1 or more tokens; got {self.tokens}")

    @classmethod
    def parse(cls, text: str) -> Window:
        """A window from its name. SteerError on any other text."""
        found = _FORM.fullmatch(text)
        if not found or text == "boundary:least":
            raise SteerError(f"unknown window {text!r}; known: {FORMS}")
        return cls(found[1].partition(":")[0], int(found[2] or 0), bool(found[3]))

    def __str__(self) -> str:
        name = f"probe:{self.tokens}" if self.kind == "probe" else self.kind
        return f"{name}:least" if self.least else name

    @property
    def reads(self) -> bool:
        """Whether the small model must compute the boundary before the decision."""
        return self.kind != "step"

    @property
    def trial_tokens(self) -> int:
        """Tokens on trial as the core counts them: 0 none, -1 the whole answer."""
        return _WHOLE_ANSWER if self.kind == "answer" else self.tokens

    def summary(self, tokens: Sequence[Signals]) -> Signals | None:
        """One set of signals from those of the window's tokens; None without any."""
        if not tokens:
            return None
        return Signals.least(tokens) if self.least else Signals.mean(tokens)


BOUNDARY = Window()
LEAST_OF_ANSWER = Window("answer", least=True)
