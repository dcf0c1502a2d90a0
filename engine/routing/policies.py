"""Who writes the next step. A policy turns the numbers of a boundary into a decision."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from engine.config import ROLES
from engine.errors import SteerError
from engine.routing.calibration import Calibration
from engine.routing.signals import Signals, check_signal

POLICIES = ("small", "large", "random", "threshold", "entropy", "query", "steer")


@dataclass(frozen=True)
class Boundary:
    """What is known where a step may begin. Boundary 0 is the end of the prompt.

    position: tokens so far, prompt included.
    previous: who wrote the last step, None at boundary 0.
    catch_up: tokens that the large model would have to read now.
    signals: None where the policy does not read.
    """

    request: int
    step: int
    position: int
    prompt_tokens: int
    previous: str | None
    catch_up: int
    signals: Signals | None


@dataclass(frozen=True)
class Decision:
    """``model`` is "small" or "large"; ``reason`` is for people.

    With ``rest`` the model writes to the end: later boundaries are neither read nor decided.
    """

    model: str
    reason: str
    posterior: float | None = None
    rest: bool = False


@runtime_checkable
class Policy(Protocol):
    """Where a policy ``reads``, the small model computes each boundary before the decision.

    A policy that does not read gets no signals and costs no reading.
    """

    @property
    def name(self) -> str:
        """What traces and tables call it."""
        ...

    @property
    def reads(self) -> bool:
        """Whether its decisions need signals."""
        ...

    def decide(self, boundary: Boundary) -> Decision:
        """Who writes the step that opens here."""
        ...


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
    reads: bool = True

    def __post_init__(self) -> None:
        check_signal(self.signal)
        if not math.isfinite(self.value):
            raise SteerError(f"a threshold must be a finite number, got {self.value}")

    def decide(self, boundary: Boundary) -> Decision:
        """Compares one number."""
        found = float(getattr(_read(boundary), self.signal))
        sure = found <= self.value if self.signal == "entropy" else found >= self.value
        sign = "<=" if found <= self.value else ">"
        chosen = "small" if sure else "large"
        return Decision(chosen, f"{self.signal} {found:.4g} {sign} {self.value:.4g}")


@dataclass(frozen=True)
class Query:
    """One decision a request, at the prompt's end: another policy's answer there, for the rest."""

    at_prompt: Policy
    reads: bool = True
    name: str = "query"

    def decide(self, boundary: Boundary) -> Decision:
        """Asks once."""
        return replace(self.at_prompt.decide(boundary), rest=True)


@dataclass(frozen=True)
class Steer:
    """The large model writes where the posterior of the confident component is below tau."""

    calibration: Calibration
    tau: float | None = None  # None: the calibration's
    name: str = "steer"
    reads: bool = True

    def __post_init__(self) -> None:
        if self.tau is not None and not 0 <= self.tau <= 1:
            raise SteerError(f"tau must be in [0, 1], got {self.tau}")

    def decide(self, boundary: Boundary) -> Decision:
        """Mixture posterior against tau."""
        posterior = self.calibration.posterior(_read(boundary))
        tau = self.calibration.tau if self.tau is None else self.tau
        chosen, sign = ("small", ">=") if posterior >= tau else ("large", "<")
        return Decision(chosen, f"posterior {posterior:.4f} {sign} {tau:.4g}", posterior)


@dataclass(frozen=True)
class Call:
    """A user's function of a boundary; returns "small", "large" or a Decision."""

    function: Callable[[Boundary], str | Decision]
    reads: bool = True
    name: str = "callable"

    def decide(self, boundary: Boundary) -> Decision:
        """Asks the function."""
        answer = self.function(boundary)
        decision = Decision(answer, "callable") if isinstance(answer, str) else answer
        if not isinstance(decision, Decision) or decision.model not in ROLES:
            raise SteerError(f"a policy must answer 'small', 'large' or a Decision, got {answer!r}")
        return decision


def _read(boundary: Boundary) -> Signals:
    if boundary.signals is None:
        raise SteerError("this policy needs signals, but the boundary was not read")
    return boundary.signals


def make_policy(
    policy: str | Policy | Callable[[Boundary], str | Decision],
    calibration: Calibration | None = None,
    tau: float | None = None,
    share: float = 0.2,
) -> Policy:
    """A policy from its name, from a function, or the policy itself.

    Names: small, large, steer (``calibration``, ``tau``), random or random:SHARE (``share``), and
    with a signal and a value of their own threshold:SIGNAL:VALUE, query:SIGNAL:VALUE (one decision,
    at the prompt's end) and entropy:VALUE (the first token's entropy in nats).
    """
    if not isinstance(policy, str):
        return policy if isinstance(policy, Policy) else Call(policy)
    name, *arguments = policy.split(":")
    if name not in POLICIES or (arguments and name not in _FORMS):
        raise SteerError(f"unknown policy {policy!r}; known: {', '.join(POLICIES)}")
    if name in ROLES:
        return Always(name)
    if name == "random":
        return Random(_share(policy, arguments) if arguments else share)
    if name == "threshold":
        return _threshold(policy, arguments)
    if name == "query":
        return Query(_threshold(policy, arguments))
    if name == "entropy":
        found = _threshold(policy, ["entropy", *(arguments or ["1.0"])])
        return replace(found, name="entropy")
    if calibration is None:
        raise SteerError("policy steer needs a calibration of this pair")
    return Steer(calibration, tau)


def _share(policy: str, arguments: list[str]) -> float:
    try:
        (share,) = arguments
        return float(share)
    except ValueError:
        raise SteerError(f"policy {policy!r}: expected {_FORMS['random']}") from None


def _threshold(policy: str, arguments: list[str]) -> Threshold:
    if not arguments:
        return Threshold()
    try:
        signal, value = arguments
        return Threshold(signal, float(value))
    except ValueError as error:
        if isinstance(error, SteerError):
            raise
        raise SteerError(
            f"policy {policy!r}: expected {_FORMS[policy.partition(':')[0]]}"
        ) from None


_FORMS = {
    "random": "random:SHARE",
    "threshold": "threshold:SIGNAL:VALUE",
    "query": "query:SIGNAL:VALUE",
    "entropy": "entropy:VALUE",
}
