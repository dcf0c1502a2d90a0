"""The policy steer, a calibrated first-token rule, and steer-cost, the same against the cost.

In the style of STEER (Lee et al., arXiv 2511.06190), not the paper's rule: one mixture, fitted
once, on how sure the small model is of the step that opens. The paper's mixtures are of steps that
have ended, and refitted over a batch: :mod:`engine.routing.steer_paper`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from engine.errors import SteerError
from engine.routing.calibration import Calibration
from engine.routing.policy import Boundary, Decision, SignalPolicy
from engine.routing.signals import Signals, is_number
from engine.routing.value_function import ValueTable
from engine.routing.windows import Window


@dataclass(frozen=True)
class _Calibrated(SignalPolicy):
    """Looks at what its calibration was fitted on."""

    calibration: Calibration

    def __post_init__(self) -> None:
        if not isinstance(self.calibration, Calibration):
            raise SteerError(
                f"expected a Calibration, got a {type(self.calibration).__name__}; "
                "Calibration.load(path, engine.fingerprint) reads one"
            )

    @property
    def window(self) -> Window:
        """The window of the calibration."""
        return Window.parse(self.calibration.window)


@dataclass(frozen=True)
class Steer(_Calibrated):
    """The large model writes where the posterior of the confident component is below tau.

    The posterior is that of the calibration's window: the step's first token, unless it was fitted
    on another.
    """

    tau: float | None = None  # None: the calibration's
    name: str = "steer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau is not None and not is_number(self.tau, 0, 1):
            raise SteerError(f"tau must be in [0, 1], got {self.tau!r}")

    def judge(self, boundary: Boundary, signals: Signals) -> Decision:
        """Compare the posterior with tau."""
        posterior = self.calibration.posterior(signals)
        tau = self.calibration.tau if self.tau is None else self.tau
        sure = posterior >= tau
        chosen, sign, kind = ("small", ">=", "sure") if sure else ("large", "<", "doubtful")
        said = f"posterior {posterior:.4f} {sign} {tau:.4g}"
        return Decision(chosen, said, posterior, kind=kind)


@dataclass(frozen=True)
class CostAware(_Calibrated):
    """The large model writes where the expected gain exceeds the cost.

    Compares the gain of a correct step with its cost: the catch-up now, the step itself, and the
    discarded trial. Later handoffs enter through a :class:`ValueTable`: reading now makes them
    cheaper, and an answer that has probably gone wrong is worth less.

    worth: value of one right answer, in answers of the large model alone: at 1, a point of accuracy
        may cost 1% of the large model's cost.
    price: cost of a row of the small model, in rows of the large one.

    The calibration must have the shape of answers. Each boundary is judged on its own signals;
    later boundaries are assumed to be unsure as often as in the calibration.
    """

    worth: float = 4.0
    price: float = 0.0
    name: str = "steer-cost"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_number(self.worth, 0) and is_number(self.price, 0)):
            raise SteerError(
                "worth and price must be 0 or more and finite, got "
                f"{self.worth!r} and {self.price!r}"
            )
        if self.calibration.shape is None:
            raise SteerError(
                f"policy {self.name} needs a calibration that knows the lengths of answers: "
                "calibrate again"
            )

    @cached_property
    def _values(self) -> ValueTable:
        shape, calibration = self.calibration.shape, self.calibration
        assert shape is not None
        doubts = tuple(zip(calibration.mixture.weights, calibration.errors, strict=True))
        return ValueTable(shape, self.worth * shape.tokens, doubts)

    def judge(self, boundary: Boundary, signals: Signals) -> Decision:
        """Compare the expected worth minus cost of the two models."""
        posterior = self.calibration.posterior(signals)
        doubt = self.calibration.error(signals)
        right, lag = 1 - boundary.risk, float(boundary.catch_up)
        keep = self._values.q_small(boundary.step, lag, right, doubt)
        handed = self._values.q_large(boundary.step, lag, right) - self.price * boundary.tried
        what = f"doubt {doubt:.3f}, handing over {handed - keep:+.1f} tokens' worth"
        if handed > keep:
            return Decision("large", what, posterior, kind="doubtful")
        return Decision("small", what, posterior, risk=doubt, kind="sure")
