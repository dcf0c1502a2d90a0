"""Fresh training problems as padded id tensors."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import torch

from bench.pair_training.spec import Spec
from bench.tasks import hops
from bench.tasks.problem import DELIMITER, EOS, Problem, split_of
from bench.tasks.registry import TASKS
from bench.tasks.tokenizer import ALPHABET, build_tokenizer

SIZE = 32
_LONGEST = 8  # steps of a problem
_SHORT = 4  # steps of hops and planning at first: looking things up is learned on few facts


class Batches:
    """An endless, seeded stream of batches; each holds one task and one number of steps."""

    def __init__(self, spec: Spec, seed: int, style: str) -> None:
        self.rng = random.Random(seed)
        self._spec, self.style = spec, style
        self._tokenizer = build_tokenizer()

    def encode(self, problem: Problem) -> tuple[list[int], int]:
        """Token ids of prompt and gold trace, and the length of the prompt."""
        prompt = self._tokenizer.encode(problem.prompt).ids
        return prompt + self._tokenizer.encode(problem.trace + EOS).ids, len(prompt)

    def problems(self, update: int) -> list[Problem]:
        """The problems of the next update, whose number (from 0) decides how long they may be."""
        rng, shares = self.rng, self._spec.shares
        task = rng.choices(list(shares), list(shares.values()))[0]
        if task == "arithmetic":
            steps = rng.randint(3, _LONGEST)
        elif update < self._spec.short:
            steps = rng.randint(1, _SHORT)
        else:
            steps = rng.randint(2, _LONGEST)
        drawn: list[Problem] = []
        while len(drawn) < SIZE:
            problem = TASKS[task].make(rng, steps, self._spec.mixes[task], self.style)
            if split_of(problem.prompt) == "train":
                drawn.append(replace(problem, task=task))
        return drawn

    def draw(self, update: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, labels and results of single look-ups, each [SIZE, length].

        Labels are -100 on prompt and padding; look-ups are -100 except where a person or a town
        that was looked up opens a step.
        """
        problems = self.problems(update)
        rows = [self.encode(problem) for problem in problems]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(SIZE, width, dtype=torch.long)
        labels = torch.full((SIZE, width), -100)
        looked_up = torch.full((SIZE, width), -100)
        for i, (problem, (row, prompt)) in enumerate(zip(problems, rows, strict=True)):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, prompt : len(row)] = torch.tensor(row[prompt:])
            for place, token in self.looked_up(problem, prompt):
                looked_up[i, place] = token
        return ids, labels, looked_up

    def looked_up(self, problem: Problem, prompt: int) -> Iterator[tuple[int, int]]:
        """Places of a hop's result in the ids, and the token that one look-up leads to.

        That is the result itself, but for a hop of two places it is the person in between.
        """
        if problem.task != "hops" or self.style != "open":
            return
        place = prompt
        for step, person in zip(problem.steps, hops.first_found(problem.prompt), strict=False):
            place += len(self._tokenizer.encode(step + DELIMITER).ids)
            yield place, ALPHABET.index(person)
