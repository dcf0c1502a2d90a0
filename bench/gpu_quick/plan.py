"""The parts of a run: the time limit of each, its stage, and which parts share a process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.errors import SteerError

PROVE, TIME = "prove", "time"
STAGES = {PROVE: (PROVE,), TIME: (TIME,), "all": (PROVE, TIME)}
SECONDS = {PROVE: 240.0, TIME: 360.0, "all": 600.0}  # of a whole run, everything included
START = 60.0  # seconds that a process may take until its first part begins
LEAST = 5.0  # seconds: with less left no part is begun
END = 5.0  # seconds that a process may take to end after its last part


@dataclass(frozen=True)
class Part:
    """One part.

    key: its name on the command line.
    limit: seconds from its beginning until it is killed.
    group: neighbours of one group share a process, and with it the loaded models.
    open_ended: takes the rest of the budget, and is not run with less than ``limit``.
    timed: it gives times, which are worthless if results are wrong.
    """

    key: str
    title: str
    limit: float
    stage: str
    group: str
    open_ended: bool = False
    timed: bool = False


PARTS = (
    Part("1", "the card: bandwidth, one product, versions", 10, PROVE, "card"),
    Part("2", "every op against fp64", 60, PROVE, "ops"),
    Part("3", "model families against transformers", 90, PROVE, "parity"),
    Part("row", "one decode row of each model", 40, PROVE, "row", timed=True),
    Part("4", "decode of each model", 90, TIME, "models", timed=True),
    Part("5", "handoff, overlap, routed pair", 120, TIME, "models", timed=True),
    Part("6", "kernels in graphs", 80, TIME, "kernels", timed=True),
    Part("7", "soak", 75, TIME, "soak", open_ended=True),
)
# Parts that run when they are needed, not by name.
COMPILE = {
    stage: Part(f"compile-{stage}", f"compilation ahead of {stage}", 45, stage, "compile")
    for stage in (PROVE, TIME)
}
BISECT = Part("bisect", "which switch or op breaks parity", 120, PROVE, "bisect")
_QUICK_SOAK = 3.0  # seconds


def known() -> str:
    """Keys of all parts, for messages."""
    return ", ".join(part.key for part in PARTS)


def chosen(stage: str, keys: Sequence[str] | None, quick: bool) -> list[Part]:
    """The parts of a stage, or its named ones, in order. SteerError if unknown."""
    if stage not in STAGES:
        raise SteerError(f"--stage: unknown {stage!r}; known: {', '.join(STAGES)}")
    by_key = {part.key: part for part in PARTS}
    for key in keys or ():
        if key not in by_key:
            raise SteerError(f"--parts: unknown part {key!r}; known: {known()}")
        if by_key[key].stage not in STAGES[stage]:
            raise SteerError(
                f"--parts: part {key} belongs to --stage {by_key[key].stage}, not to {stage}"
            )
    found = [p for p in PARTS if p.stage in STAGES[stage] and (not keys or p.key in keys)]
    return [_shortened(part) if quick else part for part in found]


def _shortened(part: Part) -> Part:
    if not part.open_ended:
        return part
    return replace(part, limit=_QUICK_SOAK)
