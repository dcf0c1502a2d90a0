"""Multi-hop questions over facts in the prompt, with a worked trace of one hop a step.

People sit in a ring and each likes another one. The prompt lists who comes next (``a>b``: after a
comes b) and who likes whom (``a@c``), shuffled, most of it irrelevant, then asks where a walk from
one person ends: ``/aA>B>>C<`` starts at a, takes the next (hop A), from there the second next (hop
B), from there the one before (hop C). Each line of the trace names the person reached, then the
letter and the relation of the next hop::

    aA>. / bB>>. / dC<. / c<eos>

So the person who must be found opens the step (style ``open``). In style ``rigid`` the step
restates the hop first: ``aA>:b. / bB>>:d. / dC<:c<eos>``.

``>`` and ``@`` are easy: the fact is in the prompt as asked. ``<`` is medium: the fact ``x>a``,
read backwards. ``>>`` is hard: two facts are put together without writing the first one down.
"""

from __future__ import annotations

import random
import re
import string

from bench.tasks.problem import (
    COLON,
    DELIMITER,
    FULL_STOP,
    Mix,
    Problem,
    Task,
    first_difference,
    last_line,
)

PEOPLE = string.ascii_lowercase
HOPS = string.ascii_uppercase[:9]
NEXT, LIKES, BEFORE, SECOND = RELATIONS = (">", "@", "<", ">>")
QUESTION = "/"
KIND = {NEXT: "easy", LIKES: "easy", BEFORE: "medium", SECOND: "hard"}
MIXES = {"light": (0.82, 0.12, 0.06), "mixed": (0.6, 0.2, 0.2), "hard": (0.35, 0.2, 0.45)}
_FACT = re.compile(r"([a-z])([>@])([a-z])")
_HOP = re.compile(r"([A-I])(>>|[>@<])")


def make_problem(rng: random.Random, hops: int, mix: Mix, style: str = "open") -> Problem:
    """Draw one problem with ``hops`` hops (at most 9) of the kinds that ``mix`` weighs."""
    # Short questions have small rings: training first learns to look things up there.
    ring = rng.sample(PEOPLE, rng.randint(min(5, hops + 2), min(7, hops + 2)))
    after = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    likes = {a: rng.choice([b for b in ring if b != a]) for a in ring}
    facts = [a + NEXT + b for a, b in after.items()] + [a + LIKES + b for a, b in likes.items()]
    rng.shuffle(facts)
    kinds = rng.choices(("easy", "medium", "hard"), weights=mix, k=hops)
    asked = [rng.choice([r for r in RELATIONS if KIND[r] == kind]) for kind in kinds]
    start = rng.choice(ring)
    question = "".join(hop + relation for hop, relation in zip(HOPS, asked, strict=False))
    prompt = f"{''.join(facts)}{QUESTION}{start}{question}{FULL_STOP}{DELIMITER}"
    steps = solve(prompt, style)
    copied = [] if style == "rigid" else ["copy"]
    return Problem(prompt, tuple(steps), (*copied, *kinds), last_line(steps[-1], COLON))


def follow(person: str, relation: str, after: dict[str, str], likes: dict[str, str]) -> str:
    """Who stands in ``relation`` to ``person``."""
    if relation == LIKES:
        return likes[person]
    if relation == BEFORE:
        return next(a for a, b in after.items() if b == person)
    return after[after[person]] if relation == SECOND else after[person]


def solve(prompt: str, style: str = "open") -> list[str]:
    """The trace of a prompt, step by step, read off its text alone."""
    after, likes, question = _read(prompt)
    person, steps = question[0], []
    for hop, relation in _HOP.findall(question):
        reached = follow(person, relation, after, likes)
        done = f"{COLON}{reached}" if style == "rigid" else ""
        steps.append(f"{person}{hop}{relation}{done}{FULL_STOP}")
        person = reached
    return [*steps[:-1], steps[-1].rstrip(FULL_STOP)] if style == "rigid" else [*steps, person]


def first_found(prompt: str) -> list[str]:
    """For each hop the person that one look-up leads to: for ``>>`` the one in between."""
    after, likes, question = _read(prompt)
    person, people = question[0], []
    for _, relation in _HOP.findall(question):
        people.append(follow(person, NEXT if relation == SECOND else relation, after, likes))
        person = follow(person, relation, after, likes)
    return people


def _read(prompt: str) -> tuple[dict[str, str], dict[str, str], str]:
    """Who comes after whom, who likes whom, and the question."""
    facts, _, question = prompt.strip().partition(QUESTION)
    relations = _FACT.findall(facts)
    after = {a: b for a, relation, b in relations if relation == NEXT}
    likes = {a: b for a, relation, b in relations if relation == LIKES}
    return after, likes, question


def first_error(problem: Problem, text: str) -> int | None:
    """The first step that is not the prompt's; None where the whole trace is right."""
    return first_difference(solve(problem.prompt, "rigid" if COLON in text else "open"), text)


def is_correct(problem: Problem, text: str) -> bool:
    """Whether a completion ends at the right person."""
    return last_line(text, COLON) == problem.answer


def step_keys(problem: Problem) -> list[str]:
    """The facts, the person and the relation, for each hop."""
    facts, _, _ = problem.prompt.partition(QUESTION)
    known = "".join(sorted("".join(fact) for fact in _FACT.findall(facts)))
    steps = solve(problem.prompt, "rigid")
    return [f"{known} {step[0]}{step[2:].partition(COLON)[0]}" for step in steps]


TASK = Task(
    "hops", make_problem, MIXES, is_correct, first_error, step_keys, {"open": 60, "rigid": 80}
)
