"""Policies: each turns the numbers of a boundary into a decision on which model writes next."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from engine.config import ROLES
from engine.errors import SteerError
from engine.routing.signals import Signals, check_signal, is_number
from engine.routing.windows import BOUNDARY, LEAST_OF_ANSWER, Window


@dataclass(frozen=True)
class Boundary:
    """The state of a request where a step may begin. Boundary 0 is the end of the prompt.

    position: tokens so far, prompt included, without those on trial.
    previous: the model that wrote the last step, None at boundary 0.
    catch_up: tokens that the large model would have to read now; if its tokenizer differs, text
        that has not crossed to it is counted in the small model's tokens.
    signals: those of the policy's window; None if the policy does not read, or the window is empty.
    tried: tokens on trial.
    large_tokens: tokens of the answer so far that the large model wrote.
    thinking: whether the text that ends the thinking part is still to come.
    risk: chance that some step so far is wrong, from the ``risk`` of earlier decisions.
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
    """The model that writes the next step.

    model: "small" or "large".
    reason: a short text for logs and traces.
    posterior: probability that the boundary is a confident one, None if the policy has none.
    rest: the model writes to the end; later boundaries are neither read nor decided.
    risk: the policy's estimate of the chance that the step is wrong; later boundaries carry the
        combined risk.
    """

    model: str
    reason: str
    posterior: float | None = None
    rest: bool = False
    risk: float = 0.0


@runtime_checkable
class Policy(Protocol):
    """Decides which model writes each step.

    If a policy ``reads``, the small model computes each boundary before the decision. Without, no
    row is computed for it, and it gets no signals unless its window's tokens were computed anyway.

    Optional attributes: ``window`` (a :class:`Window`, by default the boundary's first token),
    ``reader`` (the role of the model that reads, by default "small"), and ``audit`` (an
    :class:`engine.routing.audit.Audit`, which then is the request's).
    """

    @property
    def name(self) -> str:
        """Its name in traces and tables."""
        ...

    @property
    def reads(self) -> bool:
        """Whether its decisions need the small model at the boundary."""
        ...

    def decide(self, boundary: Boundary) -> Decision:
        """Choose the model that writes the step that opens here."""
        ...


def window_of(policy: Policy) -> Window:
    """The policy's window; SteerError if it is no Window."""
    window = getattr(policy, "window", BOUNDARY)
    if not isinstance(window, Window):
        raise SteerError(f"a policy's window must be a Window, got {window!r}")
    return window


def reader_of(policy: Policy) -> str:
    """The role of the model that reads boundaries, if the policy reads."""
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
        """The model, for the rest of the answer."""
        return Decision(self.model, "always", rest=True)


@dataclass(frozen=True)
class Random:
    """The large model writes a random share of the steps: a control that uses no signal."""

    share: float
    seed: int = 0
    name: str = "random"
    reads: bool = False

    def __post_init__(self) -> None:
        if not is_number(self.share, 0, 1):
            raise SteerError(f"the random policy's share must be in [0, 1], got {self.share!r}")

    def decide(self, boundary: Boundary) -> Decision:
        """Draw by seed, request and step, so that equal runs draw equal numbers."""
        key = f"{self.seed}/{boundary.request}/{boundary.step}".encode()
        drawn = int.from_bytes(hashlib.sha256(key).digest()[:7]) / 256**7
        chosen = "large" if drawn < self.share else "small"
        return Decision(chosen, f"drew {drawn:.3f}, share {self.share:.3f}")


@dataclass(frozen=True)
class Threshold:
    """The large model writes where a raw signal is below ``value`` (entropy: above it).

    A value that the signal cannot reach, such as a probability of 1.1, makes it one model always.
    """

    signal: str = "max_prob"
    value: float = 0.9
    name: str = "threshold"
    window: Window = BOUNDARY

    def __post_init__(self) -> None:
        check_signal(self.signal)
        if not is_number(self.value):
            raise SteerError(f"a threshold must be a finite number, got {self.value!r}")

    @property
    def reads(self) -> bool:
        """Whether its window needs a read boundary."""
        return self.window.reads

    def decide(self, boundary: Boundary) -> Decision:
        """Compare the signal with the value; SteerError if the boundary was not read."""
        signals = read_signals(boundary, self.window)
        if signals is None:
            return NOTHING_TO_JUDGE
        signal = float(getattr(signals, self.signal))
        sure = signal <= self.value if self.signal == "entropy" else signal >= self.value
        sign = "<=" if signal <= self.value else ">"
        chosen = "small" if sure else "large"
        return Decision(chosen, f"{self.signal} {signal:.4g} {sign} {self.value:.4g}")


@dataclass(frozen=True)
class Query:
    """One decision a request, at the prompt's end: that of another policy, for the whole answer."""

    at_prompt: Policy
    name: str = "query"

    def __post_init__(self) -> None:
        check_policies(self.at_prompt)

    @property
    def window(self) -> Window:
        """The other policy's window."""
        return window_of(self.at_prompt)

    @property
    def reads(self) -> bool:
        """Whether the other policy reads."""
        return self.at_prompt.reads

    def decide(self, boundary: Boundary) -> Decision:
        """The other policy's decision, for the rest."""
        return replace(self.at_prompt.decide(boundary), rest=True)


@dataclass(frozen=True)
class Cascade:
    """The small model answers; the large one answers again where the small one's answer is unsure.

    No token settles before the decision, so a stream shows nothing until then. By default an answer
    is as sure as its least sure token.
    """

    signal: str = "max_prob"
    value: float = 0.9
    name: str = "cascade"
    window: Window = LEAST_OF_ANSWER
    reads: bool = True

    def __post_init__(self) -> None:
        Threshold(self.signal, self.value)

    def decide(self, boundary: Boundary) -> Decision:
        """One decision, on the small model's whole answer."""
        decision = Threshold(self.signal, self.value, window=self.window).decide(boundary)
        return replace(decision, rest=True)


@dataclass(frozen=True)
class AfterThinking:
    """One policy up to the text that ends the thinking part, another for the answer after it."""

    thinking: Policy
    answer: Policy

    def __post_init__(self) -> None:
        check_policies(self.thinking, self.answer)
        windows = list(dict.fromkeys(map(str, self._windows())))
        if len(windows) > 1:
            raise SteerError(f"both policies must look at one window, got {' and '.join(windows)}")
        if windows and windows[0].startswith("answer"):
            raise SteerError("the window answer spans the whole text: it cannot end with thinking")

    def _windows(self) -> list[Window]:
        """The windows of those of the two policies that use one."""
        both = self.thinking, self.answer
        return [window_of(p) for p in both if p.reads or hasattr(p, "window")]

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.thinking.name}, then {self.answer.name}"

    @property
    def window(self) -> Window:
        """The window that both use."""
        return next(iter(self._windows()), BOUNDARY)

    @property
    def reads(self) -> bool:
        """Whether one of the two reads."""
        return self.thinking.reads or self.answer.reads

    def decide(self, boundary: Boundary) -> Decision:
        """The decision of the policy for this part of the answer."""
        return (self.thinking if boundary.thinking else self.answer).decide(boundary)


@dataclass(frozen=True)
class Call:
    """A user's function of a boundary; returns "small", "large" or a Decision."""

    function: Callable[[Boundary], str | Decision]
    reads: bool = True
    name: str = "callable"
    window: Window = BOUNDARY

    def decide(self, boundary: Boundary) -> Decision:
        """The function's decision."""
        answer = self.function(boundary)
        return Decision(answer, "callable") if isinstance(answer, str) else answer


def check_policies(*inner: object) -> None:
    """SteerError for a part of another policy that is none, such as a name."""
    for each in inner:
        if isinstance(each, type) or not isinstance(each, Policy):
            raise SteerError(
                f"expected a Policy, got {each!r}; engine.policy(...) makes one of a name or a "
                "function"
            )


NOTHING_TO_JUDGE = Decision("small", "no step of the small model to judge yet")


def read_signals(boundary: Boundary, window: Window) -> Signals | None:
    """The boundary's signals; None if the window is the last step and the small model wrote none.

    SteerError if the window needs a read boundary and this one was not read.
    """
    if boundary.signals is None and window.reads:
        raise SteerError("this policy needs signals, but the boundary was not read")
    return boundary.signals
