"""Mixtures of two normals by step index, fitted once: what serves a request without a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.config import ROLES
from engine.errors import SteerError
from engine.routing.batch_mixture import fit_steps
from engine.routing.mixture import Mixture

LEAST_STEPS = 30  # with fewer an index shares a mixture with others


@dataclass(frozen=True)
class StepMixtures:
    """Mixtures of the scores of one model's steps.

    by_step: of step 0, 1, ...; None where there were too few, or all of one kind.
    shared: of all other steps.
    """

    by_step: tuple[Mixture | None, ...]
    shared: Mixture

    def at(self, step: int) -> Mixture:
        """The mixture for a step of this index."""
        own = self.by_step[step] if step < len(self.by_step) else None
        return own or self.shared

    @classmethod
    def fit(cls, scores: Mapping[int, Sequence[float]], least: int = LEAST_STEPS) -> StepMixtures:
        """Fit to the scores by step index.

        Indexes with fewer than ``least`` scores share one mixture; if they are too few together,
        or of one kind, that is the one of all scores.

        SteerError if the scores are too few, or all of one kind.
        """
        own = {
            step: mixture
            for step, values in scores.items()
            if len(values) >= least and (mixture := fit_steps(values))
        }
        everything = [score for values in scores.values() for score in values]
        others = [score for step, values in scores.items() if step not in own for score in values]
        shared = fit_steps(others) if len(others) >= least else None
        shared = shared or fit_steps(everything)
        if shared is None or len(everything) < least:
            raise SteerError(
                f"{len(everything)} steps with maths tokens, of which no two kinds can be told "
                f"apart: at least {least} are needed; give more prompts"
            )
        last = max(own, default=-1)
        return cls(tuple(own.get(step) for step in range(last + 1)), shared)


@dataclass(frozen=True)
class PairMixtures:
    """The mixtures of both models' steps; their scores are never compared."""

    small: StepMixtures
    large: StepMixtures

    def at(self, writer: str, step: int) -> Mixture:
        """The mixture for a step of this index that ``writer``, a role, wrote."""
        return (self.small if writer == ROLES[0] else self.large).at(step)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            role: {
                "by_step": [each and each.to_json() for each in mixtures.by_step],
                "shared": mixtures.shared.to_json(),
            }
            for role, mixtures in zip(ROLES, (self.small, self.large), strict=True)
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> PairMixtures:
        """Inverse of :meth:`to_json`; what is none raises KeyError, TypeError or ValueError."""
        small, large = (_from_json(raw[role]) for role in ROLES)
        return cls(small, large)


def _from_json(raw: Mapping[str, Any]) -> StepMixtures:
    own = tuple(None if each is None else Mixture.from_json(each) for each in raw["by_step"])
    return StepMixtures(own, Mixture.from_json(raw["shared"]))
