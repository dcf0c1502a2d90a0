"""The tokens of one request, copied from the core once each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine import _core

Int32 = npt.NDArray[np.int32]


class TokenHistory:
    """Follows the token list of one sequence: each call copies only what is new.

    A truncation costs nothing but the tokens that are written in place of those taken back.
    """

    def __init__(self) -> None:
        self._tokens: Int32 = np.empty(0, np.int32)
        self._length = 0
        self._attempt = 0  # truncations when it was read last

    def follow(self, core: _core.Scheduler, request: int) -> Int32:
        """All tokens of the sequence now, int32 [length]: a view that holds until the next call."""
        sequence = core.view(request)
        kept = min(self._length, sequence.kept_since(self._attempt))
        tail = core.tokens_since(request, kept)
        self._attempt, self._length = sequence.attempt, kept + len(tail)
        if self._length > len(self._tokens):
            grown = np.empty(2 * self._length, np.int32)
            grown[:kept] = self._tokens[:kept]
            self._tokens = grown
        self._tokens[kept : self._length] = tail
        return self._tokens[: self._length]
