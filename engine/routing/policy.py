"""What a policy is: numbers of a boundary become a decision on which model writes next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from engine._core import SMALL
from engine.config import ROLES
from engine.errors import SteerError, about
from engine.routing.audit import Audit
from engine.routing.signals import Signals
from engine.routing.speculation import Speculation
from engine.routing.windows import BOUNDARY, Window
from engine.text.maths import TokenMask


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
    large_signals: the large model's own, the mean over the last step; None if it did not write that
        step, or the policy does not ask for them.
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
    large_signals: Signals | None = None


# What a decision was made on, for the labels of metrics; ``reason`` says it in numbers.
# fixed: the policy's rule, whatever the text; sure, doubtful: what it found of the text;
# drawn: chance; budget: a cap was reached; audit: the large model doubted a step and writes it;
# crossing: the text cannot cross to the large model's tokens; other: the policy does not say.
KINDS = ("fixed", "sure", "doubtful", "drawn", "budget", "audit", "crossing", "other")


@dataclass(frozen=True)
class Decision:
    """The model that writes the next step.

    model: "small" or "large".
    reason: a short text for logs and traces.
    posterior: probability that the boundary is a confident one, None if the policy has none.
    rest: the model writes to the end; later boundaries are neither read nor decided.
    risk: the policy's estimate of the chance that the step is wrong; later boundaries carry the
        combined risk.
    kind: what it was made on, one of ``KINDS``.

    SteerError on any other kind.
    """

    model: str
    reason: str
    posterior: float | None = None
    rest: bool = False
    risk: float = 0.0
    kind: str = "other"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SteerError(
                f"a decision's kind must be one of {', '.join(KINDS)}, got {self.kind!r}", "kind"
            )


@runtime_checkable
class Policy(Protocol):
    """Decides which model writes each step.

    If a policy ``reads``, the small model computes each boundary before the decision. Without, no
    row is computed for it, and it gets no signals unless its window's tokens were computed anyway.

    Optional attributes: ``window`` (a :class:`Window`), ``reader`` (a model's role), ``audit`` (an
    :class:`engine.routing.audit.Audit`), ``speculation`` (an
    :class:`engine.routing.speculation.Speculation`), ``needs_large_signals`` and ``mask`` (which
    tokens count). :class:`PolicyBase` has their defaults.
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


class PolicyBase(ABC):
    """A policy that has all attributes: those that a subclass does not give are as here.

    The fields of a dataclass that replace one of them need a default.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name in traces and tables."""

    @property
    def window(self) -> Window:
        """The tokens whose signals a decision uses: the step's first one."""
        return BOUNDARY

    @property
    def reads(self) -> bool:
        """Whether a model computes each boundary before the decision: if the window needs it."""
        return self.window.reads

    @property
    def reader(self) -> str:
        """The role of the model that reads, if one does."""
        return ROLES[SMALL]

    @property
    def audit(self) -> Audit | None:
        """The request's audit, instead of the one of its parameters."""
        return None

    @property
    def uses_window(self) -> bool:
        """Whether decisions depend on the window: it is read, or needs no reading."""
        return self.reads or not self.window.reads

    @property
    def needs_think_end(self) -> bool:
        """Whether decisions depend on where the thinking part ends."""
        return False

    @property
    def speculation(self) -> Speculation | None:
        """How the large model's tokens are guessed, instead of as the engine's settings say."""
        return None

    @property
    def needs_large_signals(self) -> bool:
        """Whether boundaries carry the large model's signals of a step that it wrote."""
        return False

    @property
    def mask(self) -> TokenMask | None:
        """Which tokens of a step count in its signals; None: all."""
        return None

    @property
    def decides_once(self) -> bool:
        """Whether one decision holds for the rest of the answer."""
        return False

    @abstractmethod
    def decide(self, boundary: Boundary) -> Decision:
        """Choose the model that writes the step that opens here."""


@dataclass(frozen=True)
class _Completed(PolicyBase):
    """A user's policy, with defaults for the attributes that it lacks."""

    policy: Policy

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def window(self) -> Window:
        window: Window = getattr(self.policy, "window", BOUNDARY)
        return window

    @property
    def reads(self) -> bool:
        return self.policy.reads

    @property
    def reader(self) -> str:
        return str(getattr(self.policy, "reader", super().reader))

    @property
    def audit(self) -> Audit | None:
        return getattr(self.policy, "audit", None)

    @property
    def uses_window(self) -> bool:
        return self.reads or hasattr(self.policy, "window")

    @property
    def speculation(self) -> Speculation | None:
        return getattr(self.policy, "speculation", None)

    @property
    def needs_large_signals(self) -> bool:
        return bool(getattr(self.policy, "needs_large_signals", False))

    @property
    def mask(self) -> TokenMask | None:
        return getattr(self.policy, "mask", None)

    def decide(self, boundary: Boundary) -> Decision:
        return self.policy.decide(boundary)


@about("policy")
def complete(policy: object) -> PolicyBase:
    """The policy with all attributes. SteerError if it is none, or its window is no Window."""
    if isinstance(policy, type) or not isinstance(policy, PolicyBase | Policy):
        raise SteerError(
            f"expected a Policy, got {policy!r}; engine.policy(...) makes one of a name or a "
            "function"
        )
    completed = policy if isinstance(policy, PolicyBase) else _Completed(policy)
    if not isinstance(completed.window, Window):
        raise SteerError(f"a policy's window must be a Window, got {completed.window!r}")
    if not isinstance(completed.speculation, Speculation | None):
        raise SteerError(
            f"a policy's speculation must be a Speculation or None, got {completed.speculation!r}"
        )
    if not (completed.mask is None or callable(completed.mask)):
        raise SteerError(f"a policy's mask must be a function or None, got {completed.mask!r}")
    return completed


class SignalPolicy(PolicyBase):
    """A policy that decides by the signals of its window, where there are any."""

    def decide(self, boundary: Boundary) -> Decision:
        """The small model if there is no step of its own to judge, else by the signals.

        SteerError if the window needs a read boundary and this one was not read.
        """
        if boundary.signals is not None:
            return self.judge(boundary, boundary.signals)
        if self.window.reads:
            raise SteerError("this policy needs signals, but the boundary was not read")
        return Decision(ROLES[SMALL], "no step of the small model to judge yet", kind="fixed")

    @abstractmethod
    def judge(self, boundary: Boundary, signals: Signals) -> Decision:
        """Choose the model by the signals."""
