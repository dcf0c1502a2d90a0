"""STEER as a port of its authors' code shows it: in lock-step over a batch, for comparison."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.config import ROLES
from engine.routing.batch_mixture import MARKS, LastStep, Marks, decide_batch
from engine.routing.policy import Boundary, Decision
from engine.routing.steer_served import last_score
from engine.routing.together import Answer, Rewrite, Together
from engine.routing.windows import LAST_STEP, Window
from engine.text.maths import TokenMask, maths_tokens

_SMALL, _LARGE = ROLES


@dataclass(frozen=True)
class SteerPaper(Together):
    """The rule of :mod:`engine.routing.batch_mixture`, asked at each step index of a batch.

    The small model writes step 0 for all; the doubtful ones are taken back, their tokens counted as
    discarded, and the large model writes them again. Decisions depend on the other requests of the
    batch and on how many are left, so an answer cannot be repeated alone.

    marks: the thresholds on P(low).
    least_running: with fewer requests at a step index the large model writes for all of them.
    mask: which tokens are maths.
    """

    marks: Marks = MARKS
    least_running: int = 10
    mask: TokenMask = maths_tokens
    name: str = "steer-paper"
    window: Window = LAST_STEP
    needs_large_signals: bool = True
    # Requests whose step 0 has been judged: it is judged once.
    _judged: set[int] = field(default_factory=set, repr=False, compare=False)

    def decide_together(self, boundaries: Sequence[Boundary]) -> list[Answer]:
        """Decide for each step index on its own."""
        indexes: dict[int, list[Boundary]] = defaultdict(list)
        for boundary in boundaries:
            indexes[boundary.step].append(boundary)
            if boundary.step > 1:
                self._judged.discard(boundary.request)
        answers: dict[int, Answer] = {}
        for step, group in indexes.items():
            answers |= self._opening(group) if step == 0 else self._next(step, group)
        return [answers[boundary.request] for boundary in boundaries]

    def _opening(self, group: Sequence[Boundary]) -> dict[int, Answer]:
        self._judged.difference_update(boundary.request for boundary in group)
        return {b.request: Decision(_SMALL, "no step to judge yet", kind="fixed") for b in group}

    def _next(self, step: int, group: Sequence[Boundary]) -> dict[int, Answer]:
        new = [b for b in group if step == 1 and b.request not in self._judged]
        self._judged.update(boundary.request for boundary in new)
        again: dict[int, Answer] = {
            boundary.request: Rewrite(f"{decision.reason}: written again")
            for boundary, decision in zip(new, self._decided(new), strict=True)
            if decision.model == _LARGE
        }
        if again:  # the others wait until those steps are written
            return {boundary.request: again.get(boundary.request) for boundary in group}
        decisions = zip(group, self._decided(group), strict=True)
        return {boundary.request: decision for boundary, decision in decisions}

    def _decided(self, group: Sequence[Boundary]) -> list[Decision]:
        steps = [LastStep(b.previous or _SMALL, last_score(b)) for b in group]
        return decide_batch(steps, self.marks, self.least_running)
