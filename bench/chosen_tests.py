"""The problems of ``python -m bench.flops``: drawn, or of a data set."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import dataset
from bench.evaluate import TestSet, task_tests
from bench.tasks import gym
from engine import Engine, SteerError
from engine.conversation import Conversation, length


def refuse(options: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    """SteerError for the first of these options that is given."""
    for name in names:
        if getattr(options, name) is not None:
            raise SteerError(f"--{name.replace('_', '-')} {why}")


def chosen_tests(options: argparse.Namespace) -> tuple[TestSet, TestSet]:
    """The calibration and the test problems, disjoint."""
    if options.dataset:
        return _dataset_tests(options)
    refuse(options, ("max_tokens",), "goes with --dataset")
    count = options.problems or 500
    drawn = options.seed or 0, options.mix or "mixed", options.style or "open"
    return (
        task_tests("calibration", min(400, max(50, count)), *drawn, options.task or "arithmetic"),
        task_tests("test", count, *drawn, options.task or "arithmetic"),
    )


def _dataset_tests(options: argparse.Namespace) -> tuple[TestSet, TestSet]:
    """The first fifth of a data set calibrates, the rest tests."""
    own = ("task", "mix", "style")
    refuse(options, own, "is about the embedded tasks; --dataset has its own problems")
    limit = 1024 if options.max_tokens is None else options.max_tokens
    if options.dataset.startswith(gym.PREFIX):
        count, pair = options.problems or 500, options.model_pair == "tiny"
        drawn = gym.read_problems(options.dataset, count, options.seed or 0, pair)
        return _cut(options, drawn, gym.is_correct, limit)
    refuse(options, ("seed",), "draws problems; a dataset file has its own")
    problems = dataset.read_problems(Path(options.dataset))[: options.problems]
    return _cut(options, problems, dataset.is_correct, limit)


def _cut(
    options: argparse.Namespace,
    problems: Sequence[Any],
    check: Callable[[Any, str], bool],
    limit: int,
) -> tuple[TestSet, TestSet]:
    if len(problems) < 2:
        raise SteerError(f"{options.dataset}: needs at least 2 problems, one to calibrate")
    cut = max(1, len(problems) // 5)
    dataset.check_disjoint(problems[:cut], problems[cut:])
    talk = Conversation.of(options)
    calibration, tests = (
        TestSet(part, check, limit, talk) for part in (problems[:cut], problems[cut:])
    )
    return calibration, tests


def check_lengths(engine: Engine, tests: TestSet) -> None:
    """SteerError for the first problem that can never run, before any of them does."""
    tests.conversation.check(engine)
    for problem in tests.problems:
        try:
            tokens = length(engine, tests.conversation.prompt(engine, problem.prompt))
        except SteerError as error:
            raise SteerError(f"{problem.where}: {error}") from None
        if tokens + tests.max_tokens > engine.max_context:
            raise SteerError(
                f"{problem.where}: the prompt's {tokens} tokens and --max-tokens "
                f"{tests.max_tokens} exceed the context of {engine.max_context}"
            )
