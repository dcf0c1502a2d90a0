"""Policies that decide about whole answers, put together from the two models alone.

Greedy answers do not depend on other requests, so a cascade or a query policy gives one of the two
answers, and its usage is known: that of the model that answers, and the other one's work in vain.
One run of each model gives every setting; a test compares with the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from bench.evaluate import Evaluation
from bench.report.point import Costing, Floats, Point
from engine._core import SMALL, RowKind
from engine.accounting.ledger import Counts, Usage, span_counts
from engine.routing.windows import Window
from engine.tuning.samples import Sample

_SETTINGS = 11


def _taken_back(usage: Usage) -> Usage:
    """The small model's usage once its answer is dropped."""
    rows = usage.rows.copy()
    rows[SMALL, RowKind.discarded] += rows[SMALL, RowKind.sampled]
    rows[SMALL, RowKind.sampled] = 0
    return replace(usage, rows=rows)


def _read(prompt: int) -> Usage:
    """Usage where the small model reads a prompt and the token that it drew is dropped."""
    usage = Usage()
    usage.rows[SMALL, RowKind.prompt] = span_counts(0, prompt - 1)
    usage.rows[SMALL, RowKind.discarded] = span_counts(prompt - 1, prompt)
    usage.entries[SMALL] = span_counts(0, prompt - 1)
    return usage


def _share(handed: npt.NDArray[np.bool_], small: Counts, large: Counts) -> float:
    """Share of the handed problems in what both models have written, counted by problem."""
    parts = np.where(handed, large, small)
    return float((parts * handed).sum() / parts.sum())


class Composer:
    """All settings of the policies about whole answers."""

    def __init__(
        self, small: Evaluation, large: Evaluation, samples: Sequence[Sample], costing: Costing
    ) -> None:
        """``small`` and ``large``: runs of each model alone; ``samples``: of the small one."""
        self.small, self.large, self.samples, self.costing = small, large, samples, costing
        self._steps = [np.array([len(c.steps) for c in e.completions]) for e in (small, large)]
        self._tokens = [np.array([len(c.token_ids) for c in e.completions]) for e in (small, large)]

    def cascade(self) -> list[Point]:
        """Settings that decide by the least sure token of the small model's answer."""
        sure = self._sure(Window("answer", least=True))
        usages = [_taken_back(c.usage) for c in self.small.completions]
        return [self._point("cascade", v, sure < v, usages) for v in self._settings(sure)]

    def query(self) -> list[Point]:
        """Settings that decide by the log-odds of the first token of the small model's answer."""
        sure = np.array([s.steps[0][0].log_odds for s in self.samples])
        usages = [_read(s.prompt_tokens) for s in self.samples]
        return [self._point("query", v, sure < v, usages) for v in self._settings(sure)]

    def query_random(self, seed: int = 0) -> list[Point]:
        """Settings that send a random share of the problems to the large model."""
        drawn = np.random.default_rng(seed).permutation(len(self.samples)) / len(self.samples)
        usages = [Usage() for _ in self.samples]
        shares = np.linspace(0, 1, _SETTINGS)[1:-1]
        return [self._point("query-random", v, drawn < v, usages) for v in shares]

    def _sure(self, window: Window) -> Floats:
        signals = [sample.seen(window, 0) for sample in self.samples]
        return np.array([seen.max_prob if seen else 0.0 for seen in signals])

    @staticmethod
    def _settings(sure: Floats) -> list[float]:
        return sorted({float(np.quantile(sure, q)) for q in np.linspace(0, 1, _SETTINGS)[1:]})

    def _point(
        self, family: str, value: float, handed: npt.NDArray[np.bool_], usages: Sequence[Usage]
    ) -> Point:
        both = zip(self.small.completions, self.large.completions, usages, handed, strict=True)
        books = [lost + b.usage if over else a.usage for a, b, lost, over in both]
        right = np.array(self.small.correct), np.array(self.large.correct)
        return Point(
            family,
            float(value),
            np.where(handed, right[1], right[0]).astype(np.float64),
            self.costing.costs(books),
            _share(handed, *self._steps),
            _share(handed, *self._tokens),
            composed=True,
        )
