"""Who writes the next step. A policy turns the numbers of a boundary into a decision."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from engine.config import ROLES
from engine.errors import SteerError
from engine.routing.signals import Signals, check_signal
from engine.routing.windows import BOUNDARY, LEAST_OF_ANSWER, Window


@dataclass(frozen=True)
class Boundary:
    """What is known where a step may begin. Boundary 0 is the end of the prompt.

    position: tokens so far, prompt included; none that stands on trial.
    previous: who wrote the last step, None at boundary 0.
    catch_up: tokens that the large model would have to read now; where it has tokens of its own,
        what has not crossed to it counts in the small model's.
    signals: those of the policy's window; None where it does not read, or nothing is there yet.
    tried: tokens that stand on trial.
    large_tokens: of the answer so far, written by the large model.
    thinking: whether the text that ends the thinking part is still to come.
    risk: chance that a step so far has gone wrong, from the ``risk`` of the decisions before.
    """

    request: int
    step: int
    position: int
    prompt_tokens: int
    previous: str | None
    catch_up: int
    signals: Signals | None
    tried: int = 0
    large_tokens: int = 0
    thinking: bool = False
    risk: float = 0.0


@dataclass(frozen=True)
class Decision:
    """``model`` is "small" or "large"; ``reason`` is for people.

    With ``rest`` the model writes to the end: later boundaries are neither read nor decided.
    ``risk`` is the chance that the step goes wrong, as the policy sees it; later boundaries carry
    what has come together.
    """

    model: str
    reason: str
    posterior: float | None = None
    rest: bool = False
    risk: float = 0.0


@runtime_checkable
class Policy(Protocol):
    """Where a policy ``reads``, the small model computes each boundary before the decision.

    A policy that does not read costs no reading. It gets no signals, unless it has an attribute
    ``window`` (a :class:`Window`) whose tokens are there anyway; without one it is the boundary's.
    """

    @property
    def name(self) -> str:
        """What traces and tables call it."""
        ...

    @property
    def reads(self) -> bool:
        """Whether its decisions need the small model at the boundary."""
        ...

    def decide(self, boundary: Boundary) -> Decision:
        """Who writes the step that opens here."""
        ...


def window_of(policy: Policy) -> Window:
    """The policy's window."""
    found = getattr(policy, "window", BOUNDARY)
    if not isinstance(found, Window):
        raise SteerError(f"a policy's window must be a Window, got {found!r}")
    return found


def reader_of(policy: Policy) -> str:
    """The model that reads boundaries, where the policy reads."""
    return str(getattr(policy, "reader", ROLES[0]))


@dataclass(frozen=True)
class Always:
    """One model writes everything."""

    model: str
    reads: bool = False

    @property
    def name(self) -> str:
        """The model's role."""
        return self.model

    def decide(self, boundary: Boundary) -> Decision:
        """Once, for good."""
        return Decision(self.model, "always", rest=True)


@dataclass(frozen=True)
class Random:
    """The large model writes a random share of the steps: the control without a signal."""

    share: float
    seed: int = 0
    name: str = "random"
    reads: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise SteerError(f"the random policy's share must be in [0, 1], got {self.share}")

    def decide(self, boundary: Boundary) -> Decision:
        """Keyed by seed, request and step: the same run draws the same."""
        key = f"{self.seed}/{boundary.request}/{boundary.step}".encode()
        drawn = int.from_bytes(hashlib.sha256(key).digest()[:7]) / 256**7
        chosen = "large" if drawn < self.share else "small"
        return Decision(chosen, f"drew {drawn:.3f}, share {self.share:.3f}")


@dataclass(frozen=True)
class Threshold:
    """The large model writes where a raw signal is below (for entropy: above) a value."""

    signal: str = "max_prob"
    value: float = 0.9
    name: str = "threshold"
    window: Window = BOUNDARY

    def __post_init__(self) -> None:
        check_signal(self.signal)
        if not math.isfinite(self.value):
            raise SteerError(f"a threshold must be a finite number, got {self.value}")

    @property
    def reads(self) -> bool:
        """As its window does."""
        return self.window.reads

    def decide(self, boundary: Boundary) -> Decision:
        """Compares one number."""
        signals = read_signals(boundary, self.window)
        if signals is None:
            return NOTHING_TO_JUDGE
        found = float(getattr(signals, self.signal))
        sure = found <= self.value if self.signal == "entropy" else found >= self.value
        sign = "<=" if found <= self.value else ">"
        chosen = "small" if sure else "large"
        return Decision(chosen, f"{self.signal} {found:.4g} {sign} {self.value:.4g}")


@dataclass(frozen=True)
class Query:
    """One decision a request, at the prompt's end: another policy's answer there, for the rest."""

    at_prompt: Policy
    name: str = "query"

    @property
    def window(self) -> Window:
        """Of the policy that it asks."""
        return window_of(self.at_prompt)

    @property
    def reads(self) -> bool:
        """As that policy does."""
        return self.at_prompt.reads

    def decide(self, boundary: Boundary) -> Decision:
        """Asks once."""
        return replace(self.at_prompt.decide(boundary), rest=True)


@dataclass(frozen=True)
class Cascade:
    """The small model solves; the large one solves again where the small one's answer is unsure.

    Nothing settles before: a stream shows no token until the answer is kept. By default the answer
    counts as sure as its least sure token.
    """

    signal: str = "max_prob"
    value: float = 0.9
    name: str = "cascade"
    window: Window = LEAST_OF_ANSWER
    reads: bool = True

    def __post_init__(self) -> None:
        Threshold(self.signal, self.value)

    def decide(self, boundary: Boundary) -> Decision:
        """Asks once, when the small model's answer is there."""
        found = Threshold(self.signal, self.value, window=self.window).decide(boundary)
        return replace(found, rest=True)


@dataclass(frozen=True)
class AfterThinking:
    """One policy up to the text that ends the thinking part, another for the answer behind it."""

    thinking: Policy
    answer: Policy

    def __post_init__(self) -> None:
        found = list(dict.fromkeys(map(str, self._windows())))
        if len(found) > 1:
            raise SteerError(f"both policies must look at one window, got {' and '.join(found)}")
        if found and found[0].startswith("answer"):
            raise SteerError("the window answer spans the whole text: it cannot end with thinking")

    def _windows(self) -> list[Window]:
        """Of the policies that look at one."""
        both = self.thinking, self.answer
        return [window_of(p) for p in both if p.reads or hasattr(p, "window")]

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.thinking.name}, then {self.answer.name}"

    @property
    def window(self) -> Window:
        """The one that they look at."""
        return next(iter(self._windows()), BOUNDARY)

    @property
    def reads(self) -> bool:
        """Whether one of them does."""
        return self.thinking.reads or self.answer.reads

    def decide(self, boundary: Boundary) -> Decision:
        """Asks the one in charge."""
        return (self.thinking if boundary.thinking else self.answer).decide(boundary)


@dataclass(frozen=True)
class Call:
    """A user's function of a boundary; returns "small", "large" or a Decision."""

    function: Callable[[Boundary], str | Decision]
    reads: bool = True
    name: str = "callable"
    window: Window = BOUNDARY

    def decide(self, boundary: Boundary) -> Decision:
        """Asks the function."""
        answer = self.function(boundary)
        return Decision(answer, "callable") if isinstance(answer, str) else answer


NOTHING_TO_JUDGE = Decision("small", "no step of the small model to judge yet")


def read_signals(boundary: Boundary, window: Window) -> Signals | None:
    """The signals; None where a window of the last step has none to offer."""
    if boundary.signals is None and window.reads:
        raise SteerError("this policy needs signals, but the boundary was not read")
    return boundary.signals
