"""The share of the test set's single steps that a training run had seen."""

from __future__ import annotations

from bench.pair_training.batches import Batches
from bench.pair_training.spec import Spec
from bench.tasks.registry import TASKS


def seen_before(spec: Spec, seed: int, style: str, count: int) -> dict[str, float]:
    """By task, the share of the test set's single steps that this training run had trained on.

    A step is identified by everything that its result depends on (``Task.step_keys``). ``count``
    problems per task, mix "mixed". Draws the run's problems again; takes a minute or two.
    """
    wanted = {
        name: [k for p in t.problems("test", count, style=style) for k in t.step_keys(p)]
        for name, t in TASKS.items()
        if name in spec.shares
    }
    missing = {name: set(keys) for name, keys in wanted.items()}
    batches = Batches(spec, seed, style)
    for update in range(spec.updates):
        for problem in batches.problems(update):
            missing[problem.task].difference_update(TASKS[problem.task].step_keys(problem))
    return {
        name: sum(key not in missing[name] for key in keys) / len(keys)
        for name, keys in wanted.items()
    }
