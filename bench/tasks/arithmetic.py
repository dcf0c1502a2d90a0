"""Left-to-right arithmetic modulo 100, with a worked trace of steps.

A problem is a start value and K operations that are read strictly from left to right, for
example ``47+36*7-15?``. Each line of the trace says what the last line comes to and what to do
next, so the uncertain digit comes right after the delimiter::

    47+36 / 83*7 / 81-15 / 66<eos>

That is style ``open``. In style ``rigid`` each line restates its operation first, so a step's first
token is a copy and says nothing about the doubt that follows::

    47+36=83 / 83*7=81 / 81-15=66<eos>

Nothing marks how hard a step is except its operation: ``+`` and ``-`` are easy, ``*`` by 3, 7
or 9 is medium, ``*`` by 11..99 is hard. Multipliers end in 1, 3, 7 or 9: they are coprime to
100, so a wrong digit can never be multiplied away again.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

MODULUS = 100
DELIMITER = "\n\n"
EOS = "<eos>"
PAD = "<pad>"
ALPHABET = [PAD, EOS, DELIMITER, *"0123456789+-*?"]
EQUALS = "="  # only in the rigid style, behind the others
STYLES = ("open", "rigid")
KINDS = ("easy", "medium", "hard")
SPLITS = ("train", "calibration", "test")
MIXES = {
    "light": (0.7, 0.15, 0.15),
    "mixed": (0.55, 0.2, 0.25),
    "hard": (0.3, 0.2, 0.5),
}
_MEDIUM = (3, 7, 9)
_HARD = tuple(b for b in range(11, 100) if b % 10 in (1, 3, 7, 9))


@dataclass(frozen=True)
class Problem:
    """One problem, its gold trace and its answer.

    ``steps`` excludes delimiters; ``kinds[i]`` is the kind of the operation whose result stands in
    step ``i`` (in style open ``"copy"`` for the first step, which only repeats the start value).
    """

    prompt: str
    steps: tuple[str, ...]
    kinds: tuple[str, ...]
    answer: str

    @property
    def where(self) -> str:
        """What error messages call it."""
        return self.prompt.strip()

    @property
    def trace(self) -> str:
        """The gold completion, delimiters included, without the end-of-sequence token."""
        return DELIMITER.join(self.steps)


def split_of(prompt: str) -> str:
    """Which split a problem belongs to: decided by a hash, so the splits are disjoint."""
    byte = hashlib.sha256(prompt.encode()).digest()[0]
    return "test" if byte < 16 else "calibration" if byte < 32 else "train"


def _operation(kind: str, rng: random.Random) -> tuple[str, int]:
    if kind == "easy":
        return rng.choice("+-"), rng.randint(10, 99)
    return "*", rng.choice(_MEDIUM if kind == "medium" else _HARD)


def _apply(value: int, sign: str, operand: int) -> int:
    if sign == "+":
        return (value + operand) % MODULUS
    return (value - operand if sign == "-" else value * operand) % MODULUS


def make_problem(
    rng: random.Random, operations: int, mix: tuple[float, float, float], style: str = "open"
) -> Problem:
    """Draw one problem with ``operations`` operations of the kinds that ``mix`` weighs."""
    value = rng.randrange(MODULUS)
    prompt, steps = f"{value:02d}", []
    kinds = rng.choices(KINDS, weights=mix, k=operations)
    for kind in kinds:
        sign, operand = _operation(kind, rng)
        prompt += f"{sign}{operand}"
        result = _apply(value, sign, operand)
        done = f"{EQUALS}{result:02d}" if style == "rigid" else ""
        steps.append(f"{value:02d}{sign}{operand}{done}")
        value = result
    if style == "open":
        steps.append(f"{value:02d}")
        kinds = ["copy", *kinds]
    return Problem(f"{prompt}?{DELIMITER}", tuple(steps), tuple(kinds), f"{value:02d}")


def stream(
    split: str,
    seed: int,
    mix: tuple[float, float, float],
    operations: tuple[int, int] = (4, 8),
    style: str = "open",
) -> Iterator[Problem]:
    """Endless distinct problems of one split, the same for the same arguments.

    ``mix`` weighs easy, medium and hard operations, ``operations`` bounds their number.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}: expected one of {', '.join(STYLES)}")
    rng, seen = random.Random(f"{split}-{seed}"), set()
    while True:
        problem = make_problem(rng, rng.randint(*operations), mix, style)
        if problem.prompt not in seen and split_of(problem.prompt) == split:
            seen.add(problem.prompt)
            yield problem


def problems(
    split: str, count: int, seed: int = 0, mix: str = "mixed", style: str = "open"
) -> list[Problem]:
    """The first ``count`` problems of :func:`stream`, 4 to 8 operations, of a named mix."""
    if mix not in MIXES:
        raise ValueError(f"unknown mix {mix!r}: expected one of {', '.join(MIXES)}")
    source = stream(split, seed, MIXES[mix], style=style)
    return [next(source) for _ in range(count)]


def answer_of(text: str) -> str:
    """The answer that a completion gives: its last line, behind the equals sign if it has one."""
    return text.rsplit(DELIMITER, 1)[-1].rsplit(EQUALS, 1)[-1].strip()


def is_correct(problem: Problem, text: str) -> bool:
    """Whether a completion ends in the right answer."""
    return answer_of(text) == problem.answer
