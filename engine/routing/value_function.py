"""What the rest of an answer is still worth, and what it will cost: solved from its end backwards.

Three numbers are the state: the step, how far the large model lags behind, and the chance that
nothing has gone wrong so far. The lag matters because reading up to here is paid once: a
handoff now makes the next one cheaper, and an answer without any handoff pays nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from engine.routing.answer_shape import AnswerShape

Values = npt.NDArray[np.float64]
_CHANCES = np.linspace(0, 1, 33)  # grid of the chance that all is right
_STEPS = 256  # steps that are looked ahead at most


@dataclass(frozen=True)
class ValueTable:
    """Expected worth minus cost, in tokens that the large model reads or writes.

    shape: how long answers are.
    worth: of one right answer, in tokens of the large model.
    doubts: kinds of steps that lie ahead, each as (how often, chance that the small model errs).
    """

    shape: AnswerShape
    worth: float
    doubts: tuple[tuple[float, float], ...]

    def q_small(self, step: int, lag: float, right: float, doubt: float) -> float:
        """The small model writes this step.

        Args:
            step: index of the step that opens here.
            lag: tokens that the large model has not read.
            right: chance that nothing has gone wrong so far.
            doubt: chance that the small model errs in this step.
        """
        return self._after(step, lag / self.shape.step_tokens + 1, right * (1 - doubt))

    def q_large(self, step: int, lag: float, right: float) -> float:
        """The large model reads what it has not read, and writes this step without an error."""
        return self._after(step, 0.0, right) - lag - self.shape.step_tokens

    def _after(self, step: int, lag: float, right: float) -> float:
        """Interpolated; ``lag`` in steps."""
        table = self._table[min(step, len(self._table) - 1)]
        below = min(int(lag), table.shape[0] - 2)
        share = min(lag - below, 1.0)
        row = (1 - share) * table[below] + share * table[below + 1]
        return float(np.interp(right, _CHANCES, row)) * self.shape.step_tokens

    @cached_property
    def _table(self) -> list[Values]:
        """For each step: the value behind it, [lag in steps, chance], in steps of the large one."""
        ends = [*self.shape.ends[: _STEPS - 1], 1.0][: min(_STEPS, len(self.shape.ends))]
        lags = len(ends) + math.ceil(self.shape.prompt_tokens / self.shape.step_tokens) + 2
        won = np.broadcast_to(self.worth / self.shape.step_tokens * _CHANCES, (lags, len(_CHANCES)))
        found: list[Values] = []
        for end in reversed(ends):
            ahead = self._open(found[-1]) if found else won
            found.append(end * won + (1 - end) * ahead)
        return found[::-1]

    def _open(self, after: Values) -> Values:
        """The value before a step from that behind it."""
        lags = np.arange(len(after))
        grown = after[np.minimum(lags + 1, len(after) - 1)]
        handed = after[0][None, :] - (lags + 1)[:, None]
        value = np.zeros_like(after)
        for share, doubt in self.doubts:
            kept = np.stack([np.interp(_CHANCES * (1 - doubt), _CHANCES, row) for row in grown])
            value += share * np.maximum(kept, handed)
        return value
