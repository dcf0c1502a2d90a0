"""Policies by name, as command lines and tables write them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine._core import DRAFT_SOURCES
from engine.config import ROLES
from engine.errors import SteerError, about
from engine.routing.audit import SCORES
from engine.routing.batch_mixture import MARKS, Marks
from engine.routing.calibration import Calibration
from engine.routing.guessed import Speculate, Verify
from engine.routing.judges import AuditOnly, Judge
from engine.routing.policies import Always, Call, Cascade, Early, Query, Random, Threshold
from engine.routing.policy import Boundary, Decision, Policy, complete
from engine.routing.signals import SIGNAL_RANGES
from engine.routing.speculation import FORM, NAME, VERIFY, VERIFY_FORM, Speculation
from engine.routing.steer import CostAware, Steer
from engine.routing.steer_paper import SteerPaper
from engine.routing.steer_served import SteerServed
from engine.routing.together import Together
from engine.routing.two_way import STICKY, TWO_WAY, Sticky, TwoWay
from engine.routing.windows import Window

_FORMS = {
    "small": "small",
    "large": "large",
    "random": "random:SHARE",
    "threshold": "threshold:SIGNAL:VALUE or threshold:SIGNAL:VALUE@WINDOW",
    "entropy": "entropy:VALUE",
    "max-logit": "max-logit:VALUE or max-logit:VALUE@WINDOW",
    "previous": "previous:SIGNAL:VALUE or previous:SIGNAL:VALUE@step:least",
    "query": "query:SIGNAL:VALUE or query:SIGNAL:VALUE@WINDOW",
    "query-random": "query-random:SHARE",
    "cascade": "cascade:SIGNAL:VALUE or cascade:SIGNAL:VALUE@WINDOW",
    "early": "early:STEPS:SIGNAL:VALUE or early:STEPS:SIGNAL:VALUE@so-far:least",
    "steer": "steer or steer:TAU",
    "steer-cost": "steer-cost or steer-cost:WORTH",
    "steer-paper": "steer-paper or steer-paper:DOUBTFUL:HOPELESS",
    "steer-served": "steer-served or steer-served:DOUBTFUL:HOPELESS",
    "judge": "judge:MARK or judge:SCORE:MARK",
    "audit": "audit:MARK or audit:SCORE:MARK",
    NAME: f"{NAME}, {NAME}:K or {NAME}:K:SOURCE",
    VERIFY: f"{VERIFY}, {VERIFY}:MARK, {VERIFY}:MARK:K or {VERIFY}:MARK:K:step",
}
POLICIES = tuple(_FORMS)
HELP = ", ".join(_FORMS.values()) + (
    f"; most of these with one or more of +{FORM}, +{VERIFY_FORM}, +{TWO_WAY}:P and +{STICKY}:P, "
    f"where SOURCE is {' or '.join(DRAFT_SOURCES)} and P in [0, 1]"
)
_PLUS = re.compile(rf"\+(?=(?:{NAME}|{VERIFY}|{TWO_WAY}|{STICKY})(?:[:+]|$))")
_CALIBRATED = ("steer", "steer-cost", "steer-served")


def is_calibrated(policy: object) -> bool:
    """Whether this is the name of a policy that needs a calibration."""
    return isinstance(policy, str) and split_name(policy)[0].partition(":")[0] in _CALIBRATED


def split_name(policy: str) -> tuple[str, tuple[str, ...]]:
    """A policy's name, and what follows each plus (``speculate...``, ``two-way...``), in order."""
    name, *suffixes = _PLUS.split(policy)
    return name, tuple(suffixes)


@dataclass(frozen=True)
class _Wanted:
    """The parts of a policy's name, and the settings that fill in defaults."""

    text: str
    name: str
    arguments: tuple[str, ...]
    window: Window | None
    calibration: Calibration | None
    share: float
    price: float

    def fail(self) -> SteerError:
        return SteerError(f"policy {self.text!r}: expected {_FORMS[self.name]}")

    def number(self, default: float | None) -> float:
        """The single argument as a number; SteerError on none (without ``default``) or several."""
        if not self.arguments and default is not None:
            return default
        try:
            (value,) = self.arguments
            return float(value)
        except ValueError:
            raise self.fail() from None

    def threshold(self, kinds: tuple[str, ...]) -> Threshold:
        """A threshold from SIGNAL:VALUE, over a window of one of these kinds."""
        threshold = Threshold()
        if self.arguments:
            try:
                signal, text = self.arguments
                value = float(text)
            except ValueError:
                raise self.fail() from None
            threshold = Threshold(signal, value)
            self.check_range(signal, value)
        return self.looking(threshold, kinds)

    def check_range(self, signal: str, value: float) -> None:
        """SteerError for a value that the signal cannot reach."""
        low, high = SIGNAL_RANGES.get(signal, (-math.inf, math.inf))
        if not low <= value <= high:
            expected = f"in [{low:g}, {high:g}]" if math.isfinite(high) else f"{low:g} or more"
            raise SteerError(
                f"policy {self.text!r}: {signal} is {expected}, got {value:g}; for one model "
                "everywhere write small or large"
            )

    def looking(self, threshold: Threshold, kinds: tuple[str, ...]) -> Threshold:
        """The threshold over the window after the ``@``; by default over that of the first kind."""
        window = self.window or Window(kinds[0], least=kinds[0] == "answer")
        if window.kind not in kinds:
            raise SteerError(
                f"policy {self.text!r}: {self.name} looks at {' or '.join(kinds)}, not {window}"
            )
        return replace(threshold, window=window)

    def fitted(self) -> Calibration:
        """The calibration; SteerError without one."""
        if self.calibration is None:
            raise SteerError(f"policy {self.name} needs a calibration of this pair")
        return self.calibration


def _judged(wanted: _Wanted, kind: type[Judge] | type[AuditOnly]) -> Policy:
    *score, mark = wanted.arguments or ("-6",)
    try:
        value = float(mark)
    except ValueError:
        raise wanted.fail() from None
    if len(score) > 1 or not set(score) <= set(SCORES):
        raise wanted.fail()
    return kind(value, score[0] if score else SCORES[0])


_STEPS = ("boundary", "probe", "step", "answer")


def _cascade(wanted: _Wanted) -> Policy:
    threshold = wanted.threshold(("answer",))
    return Cascade(threshold.signal, threshold.value, window=threshold.window)


def _entropy(wanted: _Wanted) -> Policy:
    threshold = Threshold("entropy", wanted.number(1.0), name="entropy")
    wanted.check_range("entropy", threshold.value)
    return threshold


def _max_logit(wanted: _Wanted) -> Policy:
    threshold = Threshold("max_logit", wanted.number(None), name="max-logit")
    return wanted.looking(threshold, _STEPS[:3])


def _steer(wanted: _Wanted) -> Policy:
    tau = wanted.number(None) if wanted.arguments else None
    return Steer(wanted.fitted(), tau)


def _marks(wanted: _Wanted) -> Marks:
    """Two thresholds on P(low); by default the rule's own."""
    if not wanted.arguments:
        return MARKS
    try:
        doubtful, hopeless = map(float, wanted.arguments)
    except ValueError:
        raise wanted.fail() from None
    return Marks(doubtful, hopeless)


def _early(wanted: _Wanted) -> Policy:
    count, *arguments = wanted.arguments or ("",)
    if not count.isdecimal() or len(arguments) != 2:
        raise wanted.fail()
    threshold = replace(wanted, arguments=tuple(arguments)).threshold(("so-far",))
    return Early(threshold.signal, threshold.value, window=threshold.window, steps=int(count))


def _suffixed(text: str, suffix: str, policy: Policy) -> Policy:
    """A policy changed by one suffix of its name; ``text``: the whole name."""
    kind, *arguments = suffix.split(":")
    if isinstance(policy, Together):
        raise SteerError(f"policy {text!r}: {policy.name} decides for a batch and takes no suffix")
    if policy == Always("small") and kind == VERIFY:
        raise SteerError(f"policy {text!r}: nothing is verified where small writes all; use verify")
    if kind not in (TWO_WAY, STICKY):
        if complete(policy).speculation:
            raise SteerError(f"policy {text!r} says twice how many tokens are guessed")
        return _guessed(suffix, policy)
    try:
        (least,) = map(float, arguments)
    except ValueError:
        raise SteerError(f"policy {text!r}: expected +{kind}:P with a probability P") from None
    return (TwoWay if kind == TWO_WAY else Sticky)(policy, least)


def _guessed(text: str, policy: Policy) -> Policy:
    """A policy whose large steps are guessed as the text says."""
    wanted = Speculation.parse(text)
    if text.startswith(VERIFY):
        return Verify(policy, wanted.mark, wanted.tokens, wanted.finishes_step)
    return Speculate(policy, wanted.tokens, wanted.source)


_MAKERS: dict[str, Callable[[_Wanted], Policy]] = {
    "small": lambda w: Always("small"),
    "large": lambda w: Always("large"),
    "random": lambda w: Random(w.number(w.share)),
    "threshold": lambda w: w.threshold(_STEPS),
    "entropy": _entropy,
    "max-logit": _max_logit,
    "previous": lambda w: replace(w.threshold(("step",)), name="previous"),
    "query": lambda w: Query(w.threshold(("boundary", "probe"))),
    "query-random": lambda w: Query(Random(w.number(w.share)), name="query-random"),
    "cascade": _cascade,
    "early": _early,
    "steer": _steer,
    "steer-paper": lambda w: SteerPaper(_marks(w)),
    "steer-served": lambda w: SteerServed(w.fitted(), _marks(w)),
    "judge": lambda w: _judged(w, Judge),
    "audit": lambda w: _judged(w, AuditOnly),
    "steer-cost": lambda w: CostAware(w.fitted(), w.number(CostAware.worth), w.price),
    NAME: lambda w: _guessed(w.text, Always("large")),
    VERIFY: lambda w: _guessed(w.text, Always("large")),
}
_WINDOWED = ("threshold", "max-logit", "previous", "query", "cascade", "early")


@about("policy")
def make_policy(
    policy: str | Policy | Callable[[Boundary], str | Decision],
    calibration: Calibration | None = None,
    share: float = 0.2,
    price: float = 0.0,
) -> Policy:
    """A policy from its name, from a function, or the policy itself.

    Names, with their arguments (``HELP`` lists the exact forms):

    * small, large: one model writes everything.
    * random, query-random: ``:SHARE``, by default ``share``.
    * threshold, previous (on the step just finished), query (one decision, at the prompt's end),
      cascade (one decision, on the small model's whole answer): a signal and a value; early (one
      decision, on its first steps): before them the number of steps.
    * entropy, max-logit: a value, for the step's first token.
    * steer, steer-cost: TAU or WORTH, optional; both need ``calibration``.
    * steer-served, steer-paper: two marks, optional; steer-served needs a ``calibration`` with
      mixtures by step, steer-paper a batch of requests that share the policy.
    * judge, audit: the lowest log-probability of a step that the large model accepts.
    * speculate: large, with ``:K`` guesses before each of its passes, from a ``:SOURCE``.
    * verify: the small model, and where one of its tokens is less than MARK times as likely to the
      large model as its likeliest one, the large model, which reads ``:K`` tokens at a time. With
      ``:step`` it then writes the rest of the step.

    ``@WINDOW`` after a name takes the signals from that window. Suffixes change a policy; of
    several, the last one is asked first. steer-paper takes none; those that decide once (query,
    cascade, early) neither two-way nor sticky; judge and audit no verify:

    * ``+speculate``, ``+verify``: the large model's steps are written so; arguments as above.
    * ``+two-way:P``: after a step of the large model whose own highest probabilities have a mean
      below P the small model writes the next one.
    * ``+sticky:P``: after such a step the large model writes the next one, too.

    Args:
        price: cost of a row of the small model in rows of the large one, for steer-cost.

    Raises:
        SteerError: on an unknown name, malformed arguments, or a missing calibration.
    """
    if not isinstance(policy, str):
        if isinstance(policy, type) or not (isinstance(policy, Policy) or callable(policy)):
            raise SteerError(f"a policy must be a name, a Policy or a function, got {policy!r}")
        return policy if isinstance(policy, Policy) else Call(policy)
    base, suffixes = split_name(policy)
    if suffixes:
        made = make_policy(base, calibration, share, price)
        for suffix in suffixes:
            made = _suffixed(policy, suffix, made)
        return made
    wanted, at, window = policy.partition("@")
    name, *arguments = wanted.split(":")
    if name not in POLICIES or (arguments and name in ROLES):
        raise SteerError(f"unknown policy {policy!r}; known: {', '.join(POLICIES)}")
    if at and name not in _WINDOWED:
        raise SteerError(f"policy {policy!r}: {name} has a window of its own; drop @{window}")
    looks = Window.parse(window) if at else None
    return _MAKERS[name](_Wanted(policy, name, tuple(arguments), looks, calibration, share, price))
