"""Expected worth minus cost of the rest of an answer, by backward induction.

The state is the step, how many tokens the large model has not read (its lag), and the chance that
no step so far is wrong. The lag matters because catching up is paid once: a handoff now makes the
next one cheaper, and an answer without any handoff pays nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from engine.routing.answer_shape import AnswerShape

Values = npt.NDArray[np.float64]
_CHANCES = np.linspace(0, 1, 33)  # grid of the chance that no step is wrong
_STEPS = 256  # longest look-ahead, in steps


@dataclass(frozen=True)
class ValueTable:
    """Expected worth minus cost, in tokens that the large model reads or writes.

    shape: how long answers are.
    worth: value of one right answer, in tokens of the large model.
    doubts: kinds of later steps, each as (frequency, chance that the small model errs).
    """

    shape: AnswerShape
    worth: float
    doubts: tuple[tuple[float, float], ...]

    def q_small(self, step: int, lag: float, right: float, doubt: float) -> float:
        """Value if the small model writes this step.

        Args:
            step: index of the step that opens here.
            lag: tokens that the large model has not read.
            right: chance that no step so far is wrong.
            doubt: chance that the small model errs in this step.
        """
        return self._after(step, lag / self.shape.step_tokens + 1, right * (1 - doubt))

    def q_large(self, step: int, lag: float, right: float) -> float:
        """Value if the large model catches up and writes this step, without an error."""
        return self._after(step, 0.0, right) - lag - self.shape.step_tokens

    def _after(self, step: int, lag: float, right: float) -> float:
        """Value after a step, interpolated in the table; ``lag`` in steps."""
        table = self._table[min(step, len(self._table) - 1)]
        below = min(int(lag), table.shape[0] - 2)
        share = min(lag - below, 1.0)
        row = (1 - share) * table[below] + share * table[below + 1]
        return float(np.interp(right, _CHANCES, row)) * self.shape.step_tokens

    @cached_property
    def _table(self) -> list[Values]:
        """For each step, the value after it: [lag in steps, chance], in the large model's steps."""
        ends = [*self.shape.ends[: _STEPS - 1], 1.0][: min(_STEPS, len(self.shape.ends))]
        lags = len(ends) + math.ceil(self.shape.prompt_tokens / self.shape.step_tokens) + 2
        won = np.broadcast_to(self.worth / self.shape.step_tokens * _CHANCES, (lags, len(_CHANCES)))
        values: list[Values] = []
        for end in reversed(ends):
            ahead = self._open(values[-1]) if values else won
            values.append(end * won + (1 - end) * ahead)
        return values[::-1]

    def _open(self, after: Values) -> Values:
        """The value before a step from the value after it."""
        lags = np.arange(len(after))
        grown = after[np.minimum(lags + 1, len(after) - 1)]
        handed = after[0][None, :] - (lags + 1)[:, None]
        value = np.zeros_like(after)
        for share, doubt in self.doubts:
            kept = np.stack([np.interp(_CHANCES * (1 - doubt), _CHANCES, row) for row in grown])
            value += share * np.maximum(kept, handed)
        return value
