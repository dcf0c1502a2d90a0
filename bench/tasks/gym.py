"""Problems of the ``reasoning-gym`` package, scored by its own scorers.

A source is ``reasoning-gym:NAME`` or ``reasoning-gym:NAME,setting=value,...``, for example
``reasoning-gym:path_star,degree=2,min_path_length=2,max_path_length=2``. The question goes to the
models as it is, except that the embedded pair is given graphs of ``path_star`` in the words of its
planning task.
"""

from __future__ import annotations

import ast
import random
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from bench.tasks import planning
from engine.errors import SteerError
from engine.tuning.answers import expected_number, final_number

PREFIX = "reasoning-gym:"
_PATIENCE = 20  # problems drawn for each distinct one before the task counts as exhausted
_MARKED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True)
class GymProblem:
    """A prompt, its entry, and the data set that scores answers to it."""

    prompt: str
    entry: dict[str, Any]
    dataset: Any
    where: str
    names: dict[str, str] | None = None  # labels by town, where the prompt is in the pair's words

    def score(self, text: str) -> float:
        """The score of a completion by reasoning-gym, 0 to 1: the best score of its readings.

        If a plain number is expected there is one reading, the number that the text gives as its
        answer: right if it is equal, else the scorer says whether it is near enough. Fractions are
        excepted: their form may count (3/4, not 6/8).
        """
        expected = str(self.entry["answer"])
        by_form = self.names is not None or "/" in expected
        wanted = None if by_form else expected_number(expected)
        if wanted is not None:
            return self._score_number(final_number(text), wanted)
        return max(map(self._scored, self._readings(text)))

    def _scored(self, answer: str) -> float:
        try:
            return float(self.dataset.score_answer(answer, self.entry))
        except (ValueError, TypeError, ArithmeticError, LookupError):
            return 0.0  # some scorers raise on an answer of another form

    def _score_number(self, given: Fraction | None, wanted: Fraction) -> float:
        """Score a number as bare text: some scorers take any text's first number without a sign."""
        if given is None or (given < 0) != (wanted < 0):
            return 0.0
        if given == wanted:
            return 1.0
        try:
            written = str(given) if given.denominator == 1 else str(float(given))
        except (ValueError, OverflowError):
            return 0.0  # too many digits to be written
        return self._scored(written)

    def _readings(self, text: str) -> list[str]:
        if self.names is not None:
            towns = [planning.start_of(self.prompt), *planning.moves_of(text)]
            return [" ".join(self.names.get(town, town) for town in towns)]
        if marked := _MARKED.findall(text):
            return [marked[-1].strip()]
        lines = text.strip().splitlines() or [""]
        return [text.strip(), lines[-1].strip()]


def is_correct(problem: GymProblem, text: str) -> bool:
    """Whether the scorer gives full marks."""
    return problem.score(text) >= 1


def read_problems(source: str, count: int, seed: int = 0, pair: bool = False) -> list[GymProblem]:
    """``count`` distinct problems, the same for the same arguments.

    ``pair``: put them in the words of the embedded pair, if it knows the task.
    """
    name, settings = _parse(source)
    data = _create(source, name, count, seed, settings)
    unique: dict[str, GymProblem] = {}
    for index in range(_PATIENCE * count):
        entry = data[index]
        where = f"{PREFIX}{name} problem {index}"
        problem = GymProblem(entry["question"], entry, data, where)
        if pair and name == "path_star":
            problem = _as_routes(problem)
        unique.setdefault(problem.prompt, problem)
        if len(unique) == count:
            return list(unique.values())
    raise SteerError(
        f"{source}: only {len(unique)} distinct problems were found; ask for fewer with --problems"
    )


def _parse(source: str) -> tuple[str, dict[str, Any]]:
    name, *settings = source.removeprefix(PREFIX).split(",")
    parsed = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.isidentifier():
            raise SteerError(f"{source}: expected setting=value, got {setting!r}")
        try:
            parsed[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed[key] = value
    return name, parsed


def _create(source: str, name: str, count: int, seed: int, settings: dict[str, Any]) -> Any:
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError:
        raise SteerError(
            f"{source} needs the reasoning-gym package: pip install 'steer-engine[gym]'"
        ) from None
    if name not in DATASETS:
        raise SteerError(f"{source}: reasoning-gym has no task {name!r}")
    try:
        return create_dataset(name, seed=seed, size=_PATIENCE * count, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise SteerError(f"{source}: {error}") from None


def _as_routes(problem: GymProblem) -> GymProblem:
    """A ``path_star`` graph in the words of the planning task: node labels become its towns."""
    task = next(line for line in problem.entry["question"].splitlines() if line.endswith(" = "))
    graph, _, ends = task.removesuffix(" = ").partition("/")
    roads = [road.split() for road in graph.strip("|").split("|")]
    labels = list(dict.fromkeys(label for road in roads for label in road))
    if len(labels) > len(planning.TOWNS):
        raise SteerError(
            f"{problem.where}: {len(labels)} nodes, the embedded pair knows {len(planning.TOWNS)}"
        )
    # A graph's names are arbitrary; the same names for all would make small graphs equal.
    drawn = random.Random(problem.prompt).sample(planning.TOWNS, len(labels))
    towns = dict(zip(labels, drawn, strict=True))
    start, goal = (towns[end] for end in ends.split())
    known = [(towns[a], towns[b]) for a, b in roads]
    prompt = planning.write_prompt([*known, (goal, planning.EXIT)], start, goal)
    names = {town: label for label, town in towns.items()}
    return GymProblem(prompt, problem.entry, problem.dataset, problem.where, names)
