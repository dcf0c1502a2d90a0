"""The steps of one request, followed as they open: no boundary looks at all of them again."""

from __future__ import annotations

from bisect import bisect_left

from engine import _core
from engine._core import LARGE


class StepLog:
    """The steps that hold tokens, oldest first.

    starts, models: the position of each one's first token, and the model that writes it.
    """

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.models: list[int] = []
        self._large: list[int] = []  # by step: the large model's tokens before it
        self._attempt = 0  # truncations when it was followed last

    def follow(self, core: _core.Scheduler, sequence: _core.SequenceView) -> None:
        """Drop the steps that were taken back, and add the new ones."""
        self._cut(bisect_left(self.starts, sequence.kept_since(self._attempt)))
        self._attempt, length = sequence.attempt, sequence.length
        for start, model in core.steps_since(sequence.id, len(self.starts)):
            if start < length:  # a step without tokens may yet be dropped
                self._large.append(self.large_tokens(len(self.starts), start))
                self.starts.append(start)
                self.models.append(model)

    def _cut(self, number: int) -> None:
        del self.starts[number:], self.models[number:], self._large[number:]

    def before(self, position: int) -> int:
        """The number of steps that begin before a position."""
        return bisect_left(self.starts, position)

    def large_tokens(self, number: int, position: int) -> int:
        """The large model's tokens before ``position``, where the first ``number`` steps end."""
        if number == 0:
            return 0
        last = number - 1
        written = position - self.starts[last] if self.models[last] == LARGE else 0
        return self._large[last] + written
