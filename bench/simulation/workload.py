"""Made-up requests: their lengths, arrivals, ends of steps, and which model goes on.

All of it is drawn once and depends on the seed and the means alone. Whether a step ends at a token
is fixed by the request and the place in its text, and a boundary that goes to the large model at
one share also does at every greater one: so lane policies, loads, cards and shares are compared on
the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

DELIMITER, TEXT, END = range(3)
# The delimiter's token holds text as well, so that a step may be a single token.
TOKEN_BYTES = [b".\n\n", b"text", b""]
DELIMITERS = [b"\n\n"]
LONGEST = 8  # times the mean; longer draws are cut

_PLACES = 1 << 20  # each request reads the drawn numbers from its own starting place


@dataclass(frozen=True)
class Means:
    """Tokens of a prompt, an answer and a step, on average.

    Prompts and answers are log-normal with a standard deviation of ``spread`` means, rounded, at
    least 1 and at most ``LONGEST`` means; 0 makes them all alike. Steps are geometric. Answers of
    the second half of the requests are ``shift`` times as long.
    """

    prompt: float
    answer: float
    step: float
    spread: float
    shift: float = 1.0


class Texts(Protocol):
    """The requests of a simulation; fields as in :class:`Workload`."""

    prompts: list[int]
    answers: list[int]
    limits: list[int]
    longest: int
    offsets: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int32]

    def handoffs(self, share: float) -> bytes:
        """1 where a boundary goes to the large model, by place as in ``tokens``."""
        ...

    def arrivals(self, rate: float) -> Sequence[float]:
        """Moments of arrival in seconds."""
        ...


class Workload:
    """``requests`` requests; the core numbers them from 1 on.

    prompts, answers: tokens of each request, in the order of arrival.
    limits: max_tokens of each request: all that the scheduler knows of its answer's length.
    longest: the most tokens of a prompt and its limit together.
    offsets: int64 [requests + 1], by number: where its text begins in ``tokens``.
    tokens: int32; the token after ``context`` tokens is at offset + context.
    """

    def __init__(
        self,
        requests: int,
        means: Means,
        seed: int,
        most: int = 2**30,
        max_tokens: int | None = None,
    ) -> None:
        """Answers longer than their limit are cut there, as a server cuts them.

        Args:
            most: the most tokens of one sequence.
            max_tokens: limit of each request; None: ``LONGEST`` mean answers.
        """
        draws = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5)]
        lengths, places, delimiters, decisions, arrivals = draws
        self.prompts = _lengths(lengths, requests, means.prompt, means.spread)
        drawn = _lengths(lengths, requests, means.answer, means.spread)
        asked = max_tokens or int(LONGEST * means.answer * max(1.0, means.shift))
        self.limits = [max(1, min(asked, most - prompt)) for prompt in self.prompts]
        later = [means.shift if i >= requests // 2 else 1.0 for i in range(requests)]
        self.answers = [
            max(1, min(round(n * factor), limit))
            for n, factor, limit in zip(drawn, later, self.limits, strict=True)
        ]
        self.longest = max(p + n for p, n in zip(self.prompts, self.limits, strict=True))
        self.offsets = places.integers(0, _PLACES, requests + 1)
        size = _PLACES + self.longest + 1
        ends = delimiters.random(size) < 1 / means.step
        self.tokens = np.where(ends, DELIMITER, TEXT).astype(np.int32)
        self._decisions = decisions.random(size)
        self._gaps = arrivals.exponential(1.0, requests)

    def handoffs(self, share: float) -> bytes:
        """1 where a boundary goes to the large model, by place as in ``tokens``."""
        return (self._decisions < share).tobytes()

    def arrivals(self, rate: float) -> list[float]:
        """Moments of arrival in seconds: a Poisson process of ``rate`` requests a second."""
        return list((np.cumsum(self._gaps) / rate).tolist())


def _lengths(draw: np.random.Generator, count: int, mean: float, spread: float) -> list[int]:
    variance = np.log1p(spread**2)
    drawn: npt.NDArray[np.float64] = np.exp(
        draw.normal(np.log(mean) - variance / 2, np.sqrt(variance), count)
    )
    return [int(n) for n in np.clip(np.rint(drawn), 1, max(1, int(LONGEST * mean)))]
