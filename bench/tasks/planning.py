"""Routes over one-way roads: moves to a goal, past dead ends, with a checker.

The prompt lists roads (``a>b``: one can go from a to b), shuffled, some of them beside the point,
then the start and the goal: ``?ag``. Each line of the trace is a move, named by the town it goes
to; that is the choice to be made, so it opens the step (style ``open``)::

    b / c / g<eos>

In style ``rigid`` the step restates where the move starts: ``a>b / b>c / c>g<eos>``.

A move is easy where one road leads out. It is medium where two lead out and the goal is one or two
moves away. It is hard where two lead out and one of them is a dead end: which one shows only in the
roads of the towns behind them, so the move needs a look ahead. There is one way to the goal, as in
the ``path_star`` task of reasoning-gym, whose graphs have one fork, at the start.
"""

from __future__ import annotations

import random
import re
import string
from itertools import pairwise

from bench.tasks.problem import DELIMITER, Mix, Problem, Task

TOWNS = string.ascii_lowercase
ROAD = ">"
MIXES = {"light": (0.9, 0.04, 0.06), "mixed": (0.7, 0.1, 0.2), "hard": (0.45, 0.1, 0.45)}
_ROADS = re.compile(r"([a-z])>([a-z])")


def make_problem(rng: random.Random, moves: int, mix: Mix, style: str = "open") -> Problem:
    """Draw one problem with ``moves`` moves (at most 9) of the kinds that ``mix`` weighs."""
    towns = rng.sample(TOWNS, len(TOWNS))
    route, spare = towns[: moves + 1], towns[moves + 1 :]
    kinds = rng.choices(("easy", "medium", "hard"), weights=mix, k=moves)
    # The goal is in sight from the last two towns, and only from there; no dead end hides it.
    kinds = ["easy" if k == "medium" else k for k in kinds[:-2]] + kinds[-2:]
    kinds[-1] = "medium" if kinds[-1] == "hard" else kinds[-1]
    roads = list(pairwise(route))
    for place, kind in enumerate(kinds):
        if kind != "easy":
            roads.append((route[place], dead := spare.pop()))
            if kind == "medium" and place == moves - 2:
                roads.append((dead, spare.pop()))  # as long as the way to the goal
    for _ in range(rng.randint(1, min(3, moves))):
        roads.append((spare.pop(), rng.choice([*route[1:], spare[0]])))
    rng.shuffle(roads)
    prompt = "".join(f"{a}{ROAD}{b}" for a, b in roads) + f"?{route[0]}{route[-1]}{DELIMITER}"
    steps = route[1:]
    if style == "rigid":
        steps = [f"{a}{ROAD}{b}" for a, b in pairwise(route)]
    return Problem(prompt, tuple(steps), tuple(kinds), " ".join(route))


def start_of(prompt: str) -> str:
    """The town that the question starts from."""
    return prompt.strip().rpartition("?")[2][0]


def moves_of(text: str) -> list[str]:
    """The towns that a trace goes to, in either style."""
    return [line.strip().rsplit(ROAD, 1)[-1] for line in text.split(DELIMITER)]


def solve(prompt: str) -> list[str]:
    """The towns of the one way to the goal, found by search in the prompt's text alone."""
    roads, _, question = prompt.strip().partition("?")
    start, goal = question[0], question[1]
    ways = [[start]]
    for way in ways:  # grows while it is walked: breadth first
        if way[-1] == goal:
            return way
        ways += [[*way, b] for a, b in _ROADS.findall(roads) if a == way[-1] and b not in way]
    raise ValueError(f"no way from {start} to {goal}")


def first_error(problem: Problem, text: str) -> int | None:
    """The first move that leads off every way to the goal; None where the last one reaches it.

    A move is wrong where there is no such road, or where the goal cannot be reached from its town.
    """
    roads, _, question = problem.prompt.strip().partition("?")
    known = set(_ROADS.findall(roads))
    here, goal = question[0], question[1]
    for place, line in enumerate(text.split(DELIMITER)):
        origin, _, town = line.strip().rpartition(ROAD)
        if origin not in ("", here) or (here, town) not in known or here == goal:
            return place
        if goal not in _reachable(town, known):
            return place
        here = town
    return None if here == goal else len(text.split(DELIMITER))


def _reachable(town: str, roads: set[tuple[str, str]]) -> set[str]:
    found = {town}
    while more := {b for a, b in roads if a in found} - found:
        found |= more
    return found


def is_correct(problem: Problem, text: str) -> bool:
    """Whether every move is legal and the last one reaches the goal."""
    return first_error(problem, text) is None


def step_keys(problem: Problem) -> list[str]:
    """The roads, the town and the goal, for each move."""
    roads = " ".join(sorted(a + b for a, b in _ROADS.findall(problem.prompt)))
    *route, goal = solve(problem.prompt)
    return [f"{roads} {town}{goal}" for town in route]


TASK = Task(
    "planning", make_problem, MIXES, is_correct, first_error, step_keys, {"open": 30, "rigid": 60}
)
