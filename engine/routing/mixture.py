"""A mixture of two normals on one signal, fitted by EM, with a monotone posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.errors import SteerError


@dataclass(frozen=True)
class Mixture:
    """Two components; index 1 is the confident one (the higher mean).

    With unequal variances the posterior would turn around far out in a tail. So it is constant
    below the lower mean and above the higher mean.
    """

    weights: tuple[float, float]
    means: tuple[float, float]
    deviations: tuple[float, float]

    def __post_init__(self) -> None:
        numbers = (*self.weights, *self.means, *self.deviations)
        if not all(map(math.isfinite, numbers)):
            raise SteerError("a mixture needs finite numbers")
        if min(self.weights) <= 0 or min(self.deviations) <= 0:
            raise SteerError("a mixture needs weights and deviations above 0")
        if self.means[0] >= self.means[1]:
            raise SteerError("a mixture needs the lower mean first")

    def posterior(self, value: float) -> float:
        """Probability that ``value`` belongs to the confident component; rises with value."""
        if math.isnan(value):
            return 0.0
        return self._bayes(min(max(value, self.means[0]), self.means[1]))

    def _bayes(self, value: float) -> float:
        low, high = (
            math.log(w) - math.log(s) - 0.5 * ((value - m) / s) ** 2
            for w, m, s in zip(self.weights, self.means, self.deviations, strict=True)
        )
        return 1.0 / (1.0 + math.exp(min(700.0, low - high)))

    @property
    def separation(self) -> float:
        """Distance of the means in units of the pooled deviation (d-prime)."""
        return (self.means[1] - self.means[0]) / math.sqrt(
            (self.deviations[0] ** 2 + self.deviations[1] ** 2) / 2
        )

    def to_json(self) -> dict[str, tuple[float, float]]:
        """The fields as JSON values."""
        return {"weights": self.weights, "means": self.means, "deviations": self.deviations}

    @classmethod
    def from_json(cls, raw: Mapping[str, Sequence[float]]) -> Mixture:
        """Inverse of :meth:`to_json`; what is none raises KeyError, TypeError or ValueError."""
        weights, means, deviations = (_two(raw[name]) for name in _PARTS)
        return cls(weights, means, deviations)


_PARTS = ("weights", "means", "deviations")


def _two(values: Sequence[float]) -> tuple[float, float]:
    low, high = values
    return float(low), float(high)


def fit_mixture(
    values: Sequence[float],
    rounds: int = 500,
    tolerance: float = 1e-9,
    least: int = 8,
    kept: float = 2.0,
    split: float | None = None,
) -> Mixture:
    """Fit by EM from a first guess: the values above a split are the confident ones.

    Deviations are kept above 1% of the data's, so that no component collapses to a point.

    Args:
        least: values that are needed, 2 or more.
        kept: values that each component must keep.
        split: the split; None: the 25th percentile.

    Raises:
        SteerError: on fewer than ``least`` or infinite values, and where the values are all equal,
            a component keeps less than ``kept`` of them, or both components have the same mean.
    """
    x = np.asarray(values, np.float64)
    if x.size < least or not np.isfinite(x).all():
        raise SteerError(f"a mixture needs at least {least} finite values, got {x.size}")
    spread = float(x.std())
    if spread == 0:
        raise SteerError("all values are equal: this signal tells nothing here")
    high = (x > (np.quantile(x, 0.25) if split is None else split)).astype(np.float64)
    previous = -math.inf
    for _ in range(rounds):
        weights, means, deviations = _maximise(x, high, floor=0.01 * spread)
        high, likelihood = _expect(x, weights, means, deviations)
        if likelihood - previous < tolerance * x.size:
            break
        previous = likelihood
    if min(weights) * x.size < kept or abs(means[1] - means[0]) < 1e-6 * spread:
        raise SteerError(
            f"the mixture collapsed: all {x.size} values are of one kind, this signal tells "
            "nothing here"
        )
    order = np.argsort(means)
    lower, upper = (tuple(float(v[i]) for v in (weights, means, deviations)) for i in order)
    weight, mean, deviation = zip(lower, upper, strict=True)
    return Mixture(weight, mean, deviation)


def two_means(values: Sequence[float]) -> float:
    """The highest value of the lower one of two groups that differ least within: 2-means.

    SteerError if all values are equal, or there are none.
    """
    x = np.sort(np.asarray(values, np.float64))
    ends = np.flatnonzero(np.diff(x) > 0) + 1  # sizes that the lower group can have
    if not len(ends):
        raise SteerError("all values are equal: there are no two groups")
    below = np.cumsum(x - x.mean())[ends - 1]
    between = below**2 / (ends * (x.size - ends))  # what the two means explain, up to a factor
    return float(x[ends[np.argmax(between)] - 1])


def _maximise(
    x: np.ndarray, high: np.ndarray, floor: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shares = np.stack([1 - high, high])
    total = np.maximum(shares.sum(1), 1e-6)
    means = shares @ x / total
    variance = (shares * (x - means[:, None]) ** 2).sum(1) / total
    return total / total.sum(), means, np.maximum(np.sqrt(variance), floor)


def _expect(
    x: np.ndarray, weights: np.ndarray, means: np.ndarray, deviations: np.ndarray
) -> tuple[np.ndarray, float]:
    scaled = (x - means[:, None]) / deviations[:, None]
    joint = np.log(weights / deviations)[:, None] - 0.5 * scaled**2 - 0.5 * math.log(2 * math.pi)
    total = np.logaddexp(joint[0], joint[1])
    return np.exp(joint[1] - total), float(total.sum())
