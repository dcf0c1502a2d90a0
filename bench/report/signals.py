"""How well each signal over each window predicts the small model's real errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.evaluate import Evaluation
from bench.report.domain import Domain
from engine.routing.signals import confidence_scale
from engine.tuning.ranking import auroc
from engine.tuning.samples import Sample
from engine.tuning.separability import SIGNALS, Finding, judge_windows, windows_for


@dataclass(frozen=True)
class SignalRow:
    """Areas under the ROC curve: for errors found by a checker, and without labels."""

    window: str
    signal: str
    steps: int
    wrong: int
    area: float
    unlabelled: float
    separation: float

    def row(self) -> dict[str, Any]:
        """For JSON; no area is null."""
        areas = {"auroc": self.area, "auroc_unlabelled": self.unlabelled}
        plain = {k: None if math.isnan(v) else v for k, v in areas.items()}
        return {**vars(self), **plain}


def step_labels(domain: Domain, small: Evaluation, samples: Sequence[Sample]) -> list[list[bool]]:
    """Whether each step is wrong, up to the first wrong one: later steps cannot be judged."""
    labels = []
    problems = domain.test.problems
    for problem, done, sample in zip(problems, small.completions, samples, strict=True):
        first = domain.first_error(problem, done.text)
        steps = len(sample.steps)
        right = steps if first is None else min(first, steps)
        labels.append([False] * right + [True] * (right < steps))
    return labels


def signal_rows(samples: Sequence[Sample], labels: Sequence[Sequence[bool]]) -> list[SignalRow]:
    """A row for each signal over each window."""
    windows = windows_for(samples)
    unlabelled = {(f.signal, f.window): f for f in judge_windows(samples, windows)}
    rows = []
    for window in windows:
        pairs = [
            (seen, wrong)
            for sample, marks in zip(samples, labels, strict=True)
            for step, wrong in enumerate(marks)
            if (seen := sample.seen(window, step)) is not None
        ]
        wrong = [float(mark) for _, mark in pairs]
        for signal in SIGNALS:
            area = auroc([confidence_scale(signal, seen) for seen, _ in pairs], wrong)
            finding: Finding = unlabelled[signal, str(window)]
            rows.append(
                SignalRow(
                    str(window),
                    signal,
                    len(pairs),
                    int(sum(wrong)),
                    area,
                    finding.area,
                    finding.separation,
                )
            )
    return rows
