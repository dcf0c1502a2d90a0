"""Multi-hop questions over facts in the prompt, with a worked trace of one hop a step.

People sit in a ring and each likes somebody. The prompt lists who comes next (``aNb``: after a
comes b) and who likes whom (``aLc``), shuffled, most of it beside the point, then asks where a walk
from one person ends: ``?a1N2S3B`` starts at a, takes the next, from there the second next, from
there the one before. Each line of the trace names the person reached, then the number and the
relation of the next hop::

    a1N / b2S / d3B / c<eos>

So the person who must be found opens the step (style ``open``). In style ``rigid`` the step
restates the hop first: ``a1N=b / b2S=d / d3B=c<eos>``.

``N`` and ``L`` are easy: the fact is in the prompt as asked. ``B`` is medium: the fact ``xNa``,
read backwards. ``S`` is hard: two facts are put together without writing the first one down.
"""

from __future__ import annotations

import random
import re
import string

from bench.tasks.problem import (
    DELIMITER,
    EQUALS,
    Mix,
    Problem,
    Task,
    first_difference,
    last_line,
)

PEOPLE = string.ascii_lowercase
RELATIONS = "NLBS"
KIND = {"N": "easy", "L": "easy", "B": "medium", "S": "hard"}
MIXES = {"light": (0.82, 0.12, 0.06), "mixed": (0.6, 0.2, 0.2), "hard": (0.35, 0.2, 0.45)}
_FACT = re.compile(r"([a-z])([NL])([a-z])")
_HOP = re.compile(r"(\d)([NLBS])")


def make_problem(rng: random.Random, hops: int, mix: Mix, style: str = "open") -> Problem:
    """Draw one problem with ``hops`` hops (at most 9) of the kinds that ``mix`` weighs."""
    # Short questions have small rings: where training begins to learn to look things up.
    ring = rng.sample(PEOPLE, rng.randint(min(4, hops + 2), min(6, hops + 2)))
    after = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    likes = {a: rng.choice([b for b in ring if b != a]) for a in ring}
    facts = [f"{a}N{b}" for a, b in after.items()] + [f"{a}L{b}" for a, b in likes.items()]
    rng.shuffle(facts)
    kinds = rng.choices(("easy", "medium", "hard"), weights=mix, k=hops)
    asked = [rng.choice([r for r in RELATIONS if KIND[r] == kind]) for kind in kinds]
    person = rng.choice(ring)
    question = "".join(f"{i}{relation}" for i, relation in enumerate(asked, 1))
    prompt = f"{''.join(facts)}?{person}{question}{DELIMITER}"
    people = [person]
    for relation in asked:
        people.append(follow(people[-1], relation, after, likes))
    steps = [f"{p}{i}{r}" for i, (p, r) in enumerate(zip(people, asked, strict=False), 1)]
    if style == "rigid":
        steps = [f"{step}{EQUALS}{p}" for step, p in zip(steps, people[1:], strict=True)]
        return Problem(prompt, tuple(steps), tuple(kinds), people[-1])
    return Problem(prompt, (*steps, people[-1]), ("copy", *kinds), people[-1])


def follow(person: str, relation: str, after: dict[str, str], likes: dict[str, str]) -> str:
    """Who stands in ``relation`` to ``person``."""
    if relation == "L":
        return likes[person]
    if relation == "B":
        return next(a for a, b in after.items() if b == person)
    return after[after[person]] if relation == "S" else after[person]


def solve(prompt: str, style: str = "open") -> list[str]:
    """The trace of a prompt, step by step, read off its text alone."""
    facts, _, question = prompt.strip().partition("?")
    found = _FACT.findall(facts)
    after = {a: b for a, relation, b in found if relation == "N"}
    likes = {a: b for a, relation, b in found if relation == "L"}
    person, steps = question[0], []
    for number, relation in _HOP.findall(question):
        reached = follow(person, relation, after, likes)
        done = f"{EQUALS}{reached}" if style == "rigid" else ""
        steps.append(f"{person}{number}{relation}{done}")
        person = reached
    return steps if style == "rigid" else [*steps, person]


def first_error(problem: Problem, text: str) -> int | None:
    """The first step that is not the prompt's; None where the whole trace is right."""
    return first_difference(solve(problem.prompt, "rigid" if EQUALS in text else "open"), text)


def is_correct(problem: Problem, text: str) -> bool:
    """Whether a completion ends at the right person."""
    return last_line(text) == problem.answer


def step_keys(problem: Problem) -> list[str]:
    """The facts, the person and the relation, for each hop."""
    facts = "".join(sorted("".join(f) for f in _FACT.findall(problem.prompt.partition("?")[0])))
    return [f"{facts} {step[0]}{step[2]}" for step in solve(problem.prompt, "rigid")]


TASK = Task(
    "hops", make_problem, MIXES, is_correct, first_error, step_keys, {"open": 60, "rigid": 80}
)
