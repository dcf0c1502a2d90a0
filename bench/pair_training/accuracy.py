"""Held-out step accuracy of a model by task and kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from transformers import Qwen2ForCausalLM

from bench.pair_training.batches import Batches
from bench.tasks.problem import DELIMITER, EOS, Problem
from bench.tasks.registry import TASKS
from bench.tasks.tokenizer import ALPHABET

Accuracy = dict[str, dict[str, float]]  # by task, then by kind; "problem": all steps right
_CHUNK = 64


@torch.no_grad()
def step_accuracy(
    model: Qwen2ForCausalLM,
    batches: Batches,
    count: int,
    seed: int,
    tasks: Iterable[str] = tuple(TASKS),
) -> Accuracy:
    """Teacher-forced share of held-out steps with every token right.

    ``count`` problems of each task, mix "hard". ``problem`` is the share with all steps right.
    """
    accuracy: Accuracy = {}
    for name in tasks:
        problems = TASKS[name].problems("test", count, seed, "hard", batches.style)
        right: dict[str, list[bool]] = defaultdict(list)
        for start in range(0, count, _CHUNK):
            for problem, hits in _steps(model, batches, problems[start : start + _CHUNK]):
                right["problem"].append(all(hits))
                for kind, hit in zip(problem.kinds, hits, strict=True):
                    right[kind].append(hit)
        accuracy[name] = {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items())}
    return accuracy


def _steps(
    model: Qwen2ForCausalLM, batches: Batches, problems: list[Problem]
) -> list[tuple[Problem, list[bool]]]:
    rows = [batches.encode(problem) for problem in problems]
    ids = torch.zeros(len(rows), max(len(row) for row, _ in rows), dtype=torch.long)
    for i, (row, _) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    hits = model(input_ids=ids).logits[:, :-1].argmax(-1) == ids[:, 1:]
    ends = [i for i, token in enumerate(ALPHABET) if token.endswith(DELIMITER) or token == EOS]
    answers = []
    for problem, (row, start), hit in zip(problems, rows, hits.tolist(), strict=True):
        steps = []
        for index in range(start, len(row)):
            if row[index] in ends:
                steps.append(all(hit[start - 1 : index]))
                start = index + 1
        answers.append((problem, steps))
    return answers


def solidity(accuracy: Accuracy) -> float:
    """Accuracy of the easy steps in the task where it is lowest."""
    return min(kinds["easy"] for kinds in accuracy.values())
