"""Laws of lengths and of arrivals, by name, drawn from a seeded generator."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from engine.errors import SteerError

FORMS = "N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA[:MOST]"
ARRIVALS = ("poisson", "even")


@dataclass(frozen=True)
class Lengths:
    """How many tokens: a law and its numbers.

    law: "fixed" (n), "uniform" (low, high, both included) or "lognormal" (median, sigma of the
        logarithm, most: longer draws are cut to it).
    """

    law: str
    numbers: tuple[float, ...]

    @classmethod
    def parse(cls, flag: str, text: str) -> Lengths:
        """The law that a flag names. SteerError with the known forms on any other text."""
        name, *rest = text.split(":")
        try:
            if not rest:
                return cls("fixed", (int(name),)).checked()
            if name == "uniform":
                low, high = map(int, rest)
                return cls("uniform", (low, high)).checked()
            if name == "lognormal":
                median, sigma, *most = map(float, rest)
                (cut,) = most or [20 * median]
                return cls("lognormal", (median, sigma, cut)).checked()
            raise ValueError
        except (ValueError, OverflowError):
            raise SteerError(
                f"{flag}: expected {FORMS}, lengths of 1 and more, got {text!r}"
            ) from None

    def checked(self) -> Lengths:
        """Itself. ValueError where a number is out of its range."""
        first, *rest = self.numbers
        holds = 1 <= first <= 1e7
        if self.law == "uniform":
            holds = holds and first <= rest[0] <= 1e7
        if self.law == "lognormal":
            holds = holds and 0 <= rest[0] <= 5 and first <= rest[1] <= 1e7
        if not holds:
            raise ValueError
        return self

    def draw(self, source: random.Random) -> int:
        """One length, 1 or more."""
        if self.law == "fixed":
            return int(self.numbers[0])
        if self.law == "uniform":
            return source.randint(int(self.numbers[0]), int(self.numbers[1]))
        median, sigma, most = self.numbers
        return max(1, round(min(most, median * source.lognormvariate(0, sigma))))

    @property
    def typical(self) -> float:
        """The median."""
        return sum(self.numbers) / 2 if self.law == "uniform" else self.numbers[0]


def arrivals(law: str, rate: float, seed: int) -> Iterator[float]:
    """Seconds from the beginning at which requests are due, without end.

    law: "poisson" (gaps are exponential: requests come independently) or "even" (equal gaps).
    rate: requests a second.
    """
    source = random.Random(f"arrivals {seed}")
    at = 0.0
    while True:
        yield at
        at += source.expovariate(rate) if law == "poisson" else 1 / rate
