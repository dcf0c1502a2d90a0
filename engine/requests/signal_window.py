"""The signals of those tokens of a request that a decision looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine import _core
from engine.errors import SteerError
from engine.routing.signals import Signals
from engine.text.maths import TokenMask
from engine.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class SignalWindow:
    """Looks at one sequence. ``mask``: which of its tokens count; None: all."""

    core: _core.Scheduler
    sequence: int
    tokenizer: Tokenizer
    mask: TokenMask | None

    def seen(
        self, signals: Mapping[int, Signals], spans: Sequence[tuple[int, int]]
    ) -> list[Signals]:
        """The signals of the tokens that count, of those that have any.

        Args:
            signals: by position.
            spans: the positions from and to of each step. A step is masked as a whole.
        """
        places = [place for span in spans for place in self._counted(*span)]
        return [signals[place] for place in places if place in signals]

    def _counted(self, first: int, last: int) -> Sequence[int]:
        if self.mask is None:
            return range(first, last)
        ids = self.core.tokens_since(self.sequence, first, last - first).tolist()
        counts = self.mask([self.tokenizer.bytes_of([i]) for i in ids])
        if len(counts) != len(ids):
            raise SteerError(
                f"a mask must have an entry for each of the {len(ids)} tokens, got {len(counts)}"
            )
        return [first + place for place, counted in enumerate(counts) if counted]
