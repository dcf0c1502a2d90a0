"""Common parts of the embedded pair's tasks: problems, styles of steps, splits, seeded streams."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

DELIMITER = "\n\n"
EOS = "<eos>"
PAD = "<pad>"
EQUALS = "="  # opens the result of a step of arithmetic in the rigid style
COLON = ":"  # the same in hops
FULL_STOP = "."  # ends a step of hops and planning, which share no symbol with arithmetic
STYLES = ("open", "rigid")
SPLITS = ("train", "calibration", "test")

Mix = tuple[float, float, float]  # weights of easy, medium and hard steps
Make = Callable[[random.Random, int, Mix, str], "Problem"]


@dataclass(frozen=True)
class Problem:
    """One problem, its gold trace and its answer.

    ``steps`` excludes delimiters; ``kinds[i]`` is the kind of the result that opens step ``i``
    (``"copy"`` if the step only repeats the prompt).
    """

    prompt: str
    steps: tuple[str, ...]
    kinds: tuple[str, ...]
    answer: str
    task: str = ""

    @property
    def where(self) -> str:
        """The problem's name in error messages."""
        return self.prompt.strip()

    @property
    def trace(self) -> str:
        """The gold completion, delimiters included, without the end-of-sequence token."""
        return DELIMITER.join(self.steps)


def split_of(prompt: str) -> str:
    """The split of a problem: decided by a hash, so the splits are disjoint."""
    byte = hashlib.sha256(prompt.encode()).digest()[0]
    return "test" if byte < 16 else "calibration" if byte < 32 else "train"


@dataclass(frozen=True)
class Task:
    """A generator of problems with its named mixes of step kinds and its two checkers.

    ``is_correct`` asks for the right answer, ``first_error`` for the first wrong step of a trace
    (None if all are right and none is missing), reading nothing but the prompt. ``step_keys`` names
    each step by everything that its result depends on: equal keys, equal results. ``max_tokens``,
    by style, is more than every right trace has. ``delimiters`` are what ends a step to the engine.
    """

    name: str
    make: Make
    mixes: dict[str, Mix]
    is_correct: Callable[[Problem, str], bool]
    first_error: Callable[[Problem, str], int | None]
    step_keys: Callable[[Problem], list[str]]
    max_tokens: dict[str, int]
    kinds: tuple[str, ...] = ("easy", "medium", "hard")
    delimiters: tuple[str, ...] = (DELIMITER,)

    def stream(
        self, split: str, seed: int, mix: Mix, steps: tuple[int, int] = (4, 8), style: str = "open"
    ) -> Iterator[Problem]:
        """Endless distinct problems of one split, the same for the same arguments.

        ``mix`` weighs the kinds of steps, ``steps`` bounds their number.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
        if style not in STYLES:
            raise ValueError(f"unknown style {style!r}: expected one of {', '.join(STYLES)}")
        source = f"{split}-{seed}" if self.name == "arithmetic" else f"{self.name}-{split}-{seed}"
        rng, seen = random.Random(source), set()
        while True:
            problem = self.make(rng, rng.randint(*steps), mix, style)
            if problem.prompt not in seen and split_of(problem.prompt) == split:
                seen.add(problem.prompt)
                yield replace(problem, task=self.name)

    def problems(
        self, split: str, count: int, seed: int = 0, mix: str = "mixed", style: str = "open"
    ) -> list[Problem]:
        """The first ``count`` problems of :meth:`stream`, 4 to 8 steps, of a named mix."""
        if mix not in self.mixes:
            raise ValueError(f"unknown mix {mix!r}: expected one of {', '.join(self.mixes)}")
        source = self.stream(split, seed, self.mixes[mix], style=style)
        return [next(source) for _ in range(count)]


def last_line(text: str, mark: str) -> str:
    """The answer that a completion gives: its last line, after ``mark`` if it has one."""
    return text.rsplit(DELIMITER, 1)[-1].rsplit(mark, 1)[-1].strip()


def first_difference(gold: list[str], text: str) -> int | None:
    """The first step of a completion that is not the gold trace's; None where all are equal."""
    given = text.split(DELIMITER)
    wrong = (i for i, step in enumerate(gold) if given[i : i + 1] != [step])
    return next(wrong, None if len(given) == len(gold) else len(gold))
