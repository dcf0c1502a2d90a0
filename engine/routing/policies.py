"""The policies that need no calibration."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from engine.errors import SteerError
from engine.routing.asking import Asking
from engine.routing.policy import Boundary, Decision, Policy, PolicyBase, SignalPolicy
from engine.routing.signals import Signals, check_signal, is_number
from engine.routing.speculation import Speculation
from engine.routing.together import part_of
from engine.routing.windows import BOUNDARY, LEAST_OF_ANSWER, SO_FAR, Window
from engine.text.maths import TokenMask


@dataclass(frozen=True)
class Always(PolicyBase):
    """One model writes everything."""

    model: str
    reads: bool = False

    @property
    def name(self) -> str:
        """The model's role."""
        return self.model

    def decide(self, boundary: Boundary) -> Decision:
        """The model, for the rest of the answer."""
        return Decision(self.model, "always", rest=True, kind="fixed")


@dataclass(frozen=True)
class Random(PolicyBase):
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
        return Decision(chosen, f"drew {drawn:.3f}, share {self.share:.3f}", kind="drawn")


@dataclass(frozen=True)
class Threshold(SignalPolicy):
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

    def judge(self, boundary: Boundary, signals: Signals) -> Decision:
        """Compare the signal with the value."""
        signal = float(getattr(signals, self.signal))
        sure = signal <= self.value if self.signal == "entropy" else signal >= self.value
        sign = "<=" if signal <= self.value else ">"
        chosen, kind = ("small", "sure") if sure else ("large", "doubtful")
        said = f"{self.signal} {signal:.4g} {sign} {self.value:.4g}"
        return Decision(chosen, said, kind=kind)


@dataclass(frozen=True)
class Query(Asking):
    """One decision a request, at the prompt's end: that of another policy, for the whole answer."""

    at_prompt: Policy
    name: str = "query"

    decides_once = True

    def __post_init__(self) -> None:
        part_of(self.at_prompt)

    @property
    def asked(self) -> Policy:
        """The policy that decides at the prompt's end."""
        return self.at_prompt

    def decide(self, boundary: Boundary) -> Decision:
        """The other policy's decision, for the rest."""
        return replace(self._other.decide(boundary), rest=True)


@dataclass(frozen=True)
class Cascade(Threshold):
    """The small model answers; the large one answers again where the small one's answer is unsure.

    No token settles before the decision, so a stream shows nothing until then. By default an answer
    is as sure as its least sure token.
    """

    name: str = "cascade"
    window: Window = LEAST_OF_ANSWER
    reads: bool = True
    decides_once = True

    def decide(self, boundary: Boundary) -> Decision:
        """One decision, on the small model's whole answer."""
        return replace(super().decide(boundary), rest=True)


@dataclass(frozen=True)
class Early(Threshold):
    """The small model writes the first ``steps`` steps; then one decision for the rest, on its
    signals over them: their mean, or each at its least sure token.
    """

    name: str = "early"
    window: Window = SO_FAR
    steps: int = 1
    decides_once = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise SteerError(f"early needs a whole number of steps, 1 or more; got {self.steps!r}")

    def decide(self, boundary: Boundary) -> Decision:
        """The small model at first, then by the signals."""
        if boundary.step < self.steps:
            return Decision("small", f"one of the first {self.steps} steps", kind="fixed")
        return replace(super().decide(boundary), rest=True)


@dataclass(frozen=True)
class AfterThinking(PolicyBase):
    """One policy up to the text that ends the thinking part, another for the answer after it."""

    thinking: Policy
    answer: Policy

    def __post_init__(self) -> None:
        windows = list(dict.fromkeys(map(str, self._windows())))
        if len(windows) > 1:
            raise SteerError(f"both policies must look at one window, got {' and '.join(windows)}")
        if windows and windows[0].startswith("answer"):
            raise SteerError("the window answer spans the whole text: it cannot end with thinking")
        if len({part.mask for part in self._parts if part.uses_window}) > 1:
            raise SteerError("both policies must count the same tokens: their masks differ")
        ways = {part.speculation for part in self._parts if part != Always("small")}
        if len(ways) > 1 and any(way and way.verifies for way in ways):
            raise SteerError(
                "both policies must be verified, with the same mark and number of tokens, or "
                "neither: a request is verified as a whole"
            )

    def _windows(self) -> list[Window]:
        """The windows of those of the two policies that use one."""
        return [part.window for part in self._parts if part.uses_window]

    @cached_property
    def _parts(self) -> tuple[PolicyBase, PolicyBase]:
        return part_of(self.thinking), part_of(self.answer)

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.thinking.name}, then {self.answer.name}"

    @property
    def window(self) -> Window:
        """The window that both use."""
        return next(iter(self._windows()), BOUNDARY)

    @property
    def needs_think_end(self) -> bool:
        """Always."""
        return True

    @property
    def speculation(self) -> Speculation | None:
        """That of the first policy which has one; it holds for the whole answer."""
        return next((part.speculation for part in self._parts if part.speculation), None)

    @property
    def needs_large_signals(self) -> bool:
        """Whether one of the two needs them."""
        return any(part.needs_large_signals for part in self._parts)

    @property
    def mask(self) -> TokenMask | None:
        """That of the policies which use the window."""
        return next((part.mask for part in self._parts if part.uses_window), None)

    @property
    def reads(self) -> bool:
        """Whether one of the two reads."""
        return any(part.reads for part in self._parts)

    def decide(self, boundary: Boundary) -> Decision:
        """The decision of the policy for this part of the answer."""
        thinking, answer = self._parts
        return (thinking if boundary.thinking else answer).decide(boundary)


@dataclass(frozen=True)
class Call(PolicyBase):
    """A user's function of a boundary; returns "small", "large" or a Decision."""

    function: Callable[[Boundary], str | Decision]
    reads: bool = True
    name: str = "callable"
    window: Window = BOUNDARY

    def decide(self, boundary: Boundary) -> Decision:
        """The function's decision."""
        answer = self.function(boundary)
        return Decision(answer, "callable") if isinstance(answer, str) else answer
