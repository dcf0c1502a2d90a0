"""Routes over one-way roads: moves to a goal, past dead ends, with a checker.

The prompt lists roads (``a>b``: one can go from a to b), shuffled, some of them irrelevant; the
goal has a road to the exit (``g>!``). Then come start and goal: ``/ag``. Each line of the trace
is a move, named by where it goes; that is the choice to be made, so it opens the step (style
``open``)::

    b. / c. / g. / !<eos>

In style ``rigid`` the step restates where the move starts: ``a>b. / b>c. / c>g. / g>!<eos>``.

A move is easy where one road leads out, medium where two do and one of them leads to the goal. It
is hard where two lead out and one of them leads to a dead end: which one shows only in the roads of
the towns after them, so the move needs a look ahead. There is one way to the goal, as in the
``path_star`` task of reasoning-gym, whose graphs have one fork, at the start.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Sequence
from itertools import pairwise

from bench.tasks.problem import DELIMITER, FULL_STOP, Mix, Problem, Task

TOWNS = string.ascii_lowercase
ROAD = ">"
QUESTION = "/"
EXIT = "!"
MIXES = {"light": (0.8, 0.05, 0.15), "mixed": (0.55, 0.1, 0.35), "hard": (0.3, 0.1, 0.6)}
_ROADS = re.compile(r"([a-z])>([a-z!])")


def make_problem(rng: random.Random, moves: int, mix: Mix, style: str = "open") -> Problem:
    """Draw one problem with ``moves`` moves (at most 9) of the kinds that ``mix`` weighs."""
    towns = rng.sample(TOWNS, len(TOWNS))
    route, spare = towns[: moves + 1], towns[moves + 1 :]
    kinds = rng.choices(("easy", "medium", "hard"), weights=mix, k=moves)
    # The goal is in sight from the last town before it, and only from there.
    kinds = ["easy" if k == "medium" else k for k in kinds[:-1]] + kinds[-1:]
    kinds[-1] = "medium" if kinds[-1] == "hard" else kinds[-1]
    roads = [*pairwise(route), (route[-1], EXIT)]
    roads += [
        (town, spare.pop()) for town, kind in zip(route, kinds, strict=False) if kind != "easy"
    ]
    for _ in range(rng.randint(1, min(3, moves))):
        roads.append((spare.pop(), rng.choice([*route[1:], spare[0]])))
    rng.shuffle(roads)
    prompt = write_prompt(roads, route[0], route[-1])
    names = [*route[1:], EXIT]
    if style == "rigid":
        names = [f"{a}{ROAD}{b}" for a, b in pairwise([*route, EXIT])]
    steps = [*(name + FULL_STOP for name in names[:-1]), names[-1]]
    return Problem(prompt, tuple(steps), (*kinds, "easy"), " ".join(route))


def write_prompt(roads: Sequence[Sequence[str]], start: str, goal: str) -> str:
    """The prompt for some roads (from, to) and a question."""
    listed = "".join(f"{a}{ROAD}{b}" for a, b in roads)
    return f"{listed}{QUESTION}{start}{goal}{FULL_STOP}{DELIMITER}"


def start_of(prompt: str) -> str:
    """The town that the question starts from."""
    return prompt.partition(QUESTION)[2][0]


def moves_of(text: str) -> list[str]:
    """The towns that a trace goes to, in either style, without the exit."""
    lines = (line.strip().rstrip(FULL_STOP) for line in text.split(DELIMITER))
    return [town for line in lines if (town := line.rsplit(ROAD, 1)[-1]) != EXIT]


def solve(prompt: str) -> list[str]:
    """The towns of the one way to the goal, found by search in the prompt's text alone."""
    roads, _, question = prompt.partition(QUESTION)
    ways = [[question[0]]]
    for way in ways:  # grows while it is walked: breadth first
        if way[-1] == question[1]:
            return way
        ways += [[*way, b] for a, b in _ROADS.findall(roads) if a == way[-1] and b not in way]
    raise ValueError(f"no way from {question[0]} to {question[1]}")


def first_error(problem: Problem, text: str) -> int | None:
    """The first move that leaves every way to the goal; None if the last move is the exit.

    A move is wrong if there is no such road, or if the goal cannot be reached from its town.
    """
    roads, _, question = problem.prompt.partition(QUESTION)
    known = set(_ROADS.findall(roads))
    here, goal = question[0], question[1]
    lines = text.split(DELIMITER)
    for place, line in enumerate(lines):
        origin, _, town = line.strip().rstrip(FULL_STOP).rpartition(ROAD)
        off = here != EXIT and goal not in _reachable(town, known) and town != EXIT
        if origin not in ("", here) or (here, town) not in known or off:
            return place
        here = town
    return None if here == EXIT else len(lines)


def _reachable(town: str, roads: set[tuple[str, str]]) -> set[str]:
    reached = {town}
    while more := {b for a, b in roads if a in reached} - reached:
        reached |= more
    return reached


def is_correct(problem: Problem, text: str) -> bool:
    """Whether every move is legal, and the last two reach the goal and leave from there."""
    return first_error(problem, text) is None


def step_keys(problem: Problem) -> list[str]:
    """The roads, the town and the goal, for each move."""
    roads = " ".join(sorted(a + b for a, b in _ROADS.findall(problem.prompt)))
    route = solve(problem.prompt)
    return [f"{roads} {town}{route[-1]}" for town in route]


TASK = Task(
    "planning", make_problem, MIXES, is_correct, first_error, step_keys, {"open": 30, "rigid": 60}
)
