"""What one request did, as its client saw it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

OK, SLOW, VANISHED, TIMEOUT = "ok", "slow", "vanished", "timeout"


@dataclass(slots=True)
class Record:
    """One request. Times are of the monotonic clock, in seconds, the same in all processes.

    due: when it was to be sent; in a closed loop, when it was sent.
    arrivals: when a piece of the answer with new tokens came. A piece is all that one read of the
        socket brought, be it a chunk or several.
    counts: new tokens of each piece, or its chunks with text where ``measured`` is "chunks".
    measured: where ``counts`` is from: "usage" (in every chunk), "ids" or "chunks".
    tokens: of the whole answer: the server's usage, else the sum of ``counts``.
    outcome: "ok", "slow" (whole, but read slowly on purpose: its times say nothing), "vanished"
        (the client left), "timeout", "http 429" and the like, "no connection", "stream error",
        "broken off".
    message: of the error.
    slow: whether the client reads slowly on purpose.
    """

    index: int
    due: float
    sent: float
    end: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    measured: str = "chunks"
    tokens: int = 0
    prompt_tokens: int | None = None
    finish: str | None = None
    outcome: str = OK
    message: str = ""
    slow: bool = False

    @property
    def ttft(self) -> float | None:
        """Seconds from ``due`` to the first piece with a token."""
        return self.arrivals[0] - self.due if self.arrivals else None

    @property
    def tpot(self) -> float | None:
        """Mean seconds of a token after the first piece; None if there is no further one."""
        after = self.tokens - self.counts[0] if self.counts else 0
        if len(self.arrivals) < 2 or after < 1:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / after

    @property
    def e2e(self) -> float:
        """Seconds from ``due`` to the end of the answer."""
        return self.end - self.due

    def intervals(self) -> list[float]:
        """Seconds between tokens: each gap between two pieces, divided by the new tokens."""
        gaps = (later - earlier for earlier, later in pairwise(self.arrivals))
        return [gap / new for gap, new in zip(gaps, self.counts[1:], strict=True)]
