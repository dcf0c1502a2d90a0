"""Policies by name, as command lines and tables write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from engine.config import ROLES
from engine.errors import SteerError
from engine.routing.calibration import Calibration
from engine.routing.policies import (
    Always,
    Boundary,
    Call,
    Cascade,
    Decision,
    Policy,
    Query,
    Random,
    Steer,
    Threshold,
)
from engine.routing.windows import Window

POLICIES = ("small", "large", "random", "threshold", "entropy", "query", "cascade", "steer")
_FORMS = {
    "random": "random:SHARE",
    "threshold": "threshold:SIGNAL:VALUE or threshold:SIGNAL:VALUE@WINDOW",
    "query": "query:SIGNAL:VALUE",
    "cascade": "cascade:SIGNAL:VALUE or cascade:SIGNAL:VALUE@WINDOW",
    "entropy": "entropy:VALUE",
}
HELP = ", ".join([*ROLES, "steer", *_FORMS.values()])


def make_policy(
    policy: str | Policy | Callable[[Boundary], str | Decision],
    calibration: Calibration | None = None,
    tau: float | None = None,
    share: float = 0.2,
) -> Policy:
    """A policy from its name, from a function, or the policy itself.

    Names: small, large, steer (``calibration``, ``tau``), random or random:SHARE (``share``), and
    with a signal and a value of their own threshold:SIGNAL:VALUE, query:SIGNAL:VALUE (one decision,
    at the prompt's end), cascade:SIGNAL:VALUE (one, on the small model's whole answer) and
    entropy:VALUE (the first token's entropy in nats). A threshold or a cascade with ``@WINDOW``
    behind it looks at that window.
    """
    if not isinstance(policy, str):
        if isinstance(policy, type) or not (isinstance(policy, Policy) or callable(policy)):
            raise SteerError(f"a policy must be a name, a Policy or a function, got {policy!r}")
        return policy if isinstance(policy, Policy) else Call(policy)
    wanted, at, window = policy.partition("@")
    name, *arguments = wanted.split(":")
    if name not in POLICIES or (arguments and name not in _FORMS):
        raise SteerError(f"unknown policy {policy!r}; known: {', '.join(POLICIES)}")
    if at and name not in ("threshold", "cascade"):
        raise SteerError(f"policy {policy!r}: {name} has a window of its own; drop @{window}")
    if name in ROLES:
        return Always(name)
    if name == "random":
        return Random(_share(policy, arguments) if arguments else share)
    if name == "steer":
        if calibration is None:
            raise SteerError("policy steer needs a calibration of this pair")
        return Steer(calibration, tau)
    return _compared(policy, name, arguments, Window.parse(window) if at else None)


def _compared(policy: str, name: str, arguments: list[str], window: Window | None) -> Policy:
    """The policies that compare a signal with a value."""
    if name == "entropy":
        found = _threshold(policy, ["entropy", *(arguments or ["1.0"])])
        return replace(found, name="entropy")
    threshold = _threshold(policy, arguments)
    if name == "query":
        return Query(threshold)
    if name == "cascade":
        cascade = Cascade(threshold.signal, threshold.value)
        return replace(cascade, window=_whole(policy, window)) if window else cascade
    return replace(threshold, window=window) if window else threshold


def _whole(policy: str, window: Window) -> Window:
    if window.kind != "answer":
        raise SteerError(f"policy {policy!r}: a cascade judges answer or answer:least")
    return window


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
        expected = _FORMS[policy.partition(":")[0]]
        raise SteerError(f"policy {policy!r}: expected {expected}") from None
