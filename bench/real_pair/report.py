"""The report's runs: every policy on the same problems at once, then a few answers one by one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from bench.calibrate import fit, samples_of
from bench.comparison import Comparison
from bench.evaluate import Evaluation, TestSet, evaluate
from bench.real_pair import tables
from bench.rows import RowWriter
from bench.stats import wilson
from engine import Calibration, Engine, SamplingParams, Usage
from engine.progress import progress_bar
from engine.routing.names import is_calibrated, make_policy

ALONE = ("large", "small")
LATENCY_PROBLEMS = 3


class RealPairRun(Comparison):
    """The comparison of ``bench.flops``, with the tokens of each model counted."""

    def __init__(self, options: argparse.Namespace, engine: Engine, rows: RowWriter) -> None:
        super().__init__(options, engine, rows)
        self._calibration_problems = 0
        self._latency: list[dict[str, Any]] = []

    def prepare(self, tests: TestSet) -> None:
        """Fit the calibration on the small model's answers, with tau where the mixture splits.

        ``bench.flops`` also searches for the best tau by the right answers. That takes some six
        runs of the pair on the calibration problems: longer than all the rest of this report.
        """
        path = self.options.calibration
        if path:
            self.calibration = Calibration.load(path, self.engine.fingerprint)
            self._calibration_problems = int(self.calibration.provenance.get("problems", 0))
            return
        _say(f"calibration: the small model alone on {len(tests.problems)} other problems")
        self.calibration = fit(self.engine, tests, samples_of(self.engine, tests, progress=True))
        self._calibration_problems = len(tests.problems)
        if self.options.save_calibration:
            self.calibration.save(self.options.save_calibration)

    def run(self, tests: TestSet, calibration: TestSet, policies: Sequence[str]) -> None:
        """All policies, then the answers one by one."""
        for role in ALONE:  # the first pass of a model costs more than any other
            self.engine.generate(["Hello"], SamplingParams(max_tokens=2), role)
        for name in policies:
            if is_calibrated(name) and self.calibration is None:
                self.prepare(calibration)
            _say(f"{name}: {len(tests.problems)} problems at once")
            self.policy(name, tests)
        routed = [name for name in policies if name not in ALONE][:1]
        self._one_by_one(tests, [*ALONE, *routed])

    def row(self, name: str) -> dict[str, Any]:
        """The row of ``bench.flops`` with the fields of this report."""
        row = super().row(name) | self._counts(self.evaluations[name])
        row |= {"bench": "real_pair", "part": "policies", "mixed": None}
        if "tau" in row:
            row["calibration_problems"] = self._calibration_problems
        if name not in ALONE:
            small, large = (self._alone(role) for role in ("small", "large"))
            row["mixed"] = tables.mixed(row, small, large)
        return row

    def report(self) -> str:
        """All tables of the finished runs."""
        rows = [self.row(name) for name in self.evaluations]
        return tables.report(rows, self._latency)

    @staticmethod
    def _counts(done: Evaluation) -> dict[str, Any]:
        return {"large_tokens": done.large_tokens, "large_token_share": done.large_token_share}

    def _alone(self, role: str) -> dict[str, Any]:
        done = self.evaluations[role]
        return {"tokens": done.tokens, "accuracy": done.accuracy}

    def _one_by_one(self, tests: TestSet, policies: Sequence[str]) -> None:
        problems = tests.problems[:LATENCY_PROBLEMS]
        _say(f"one at a time: {len(problems)} problems")
        large: list[Usage] = []  # of the first policy
        with progress_bar(len(policies) * len(problems), True) as bar:
            for name in policies:
                policy = make_policy(name, self.calibration, price=self.engine.row_price)
                done = []
                for problem in problems:
                    alone = TestSet([problem], tests.is_correct, tests.max_tokens)
                    done.append(evaluate(self.engine, policy, alone, name))
                    bar.update()
                usages = [usage for each in done for usage in each.usages]
                large = usages if name == "large" else large
                prices = self.prices.fields(usages, large)
                self._latency.append(self._latency_row(name, done) | prices)
                self._rows.write(self._latency[-1])

    def _latency_row(self, name: str, done: Sequence[Evaluation]) -> dict[str, Any]:
        right = sum(sum(each.correct) for each in done)
        low, high = wilson(right, len(done))
        tokens, written = (sum(count(d) for d in done) for count in (_tokens, _large_tokens))
        return {
            "bench": "real_pair",
            "part": "one at a time",
            "policy": name,
            "n": len(done),
            "accuracy": right / len(done),
            "ci_low": low,
            "ci_high": high,
            "cut_off": sum(each.cut_off for each in done),
            "tokens": tokens,
            "large_tokens": written,
            "large_token_share": written / max(1, tokens),
            "seconds": round(sum(each.seconds for each in done), 3),
            "each_seconds": [round(each.seconds, 3) for each in done],
            "pair": self.options.model_pair,
            "fingerprint": self.engine.fingerprint,
            "dtype": self.options.dtype,
            "problems": self._problems(),
        }


def _tokens(done: Evaluation) -> int:
    return done.tokens


def _large_tokens(done: Evaluation) -> int:
    return done.large_tokens


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
