"""The result rows of ``python -m bench.signals``, and its table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.stats import wilson
from bench.step_signals.answers import Answer, autocorrelation
from bench.step_signals.continuations import Outcomes
from bench.step_signals.scores import IdMask, Score, step_scores
from bench.step_signals.takeover import accuracy_at, by_chance, by_oracle, caught_at, takeover_curve
from bench.table import render
from engine.tuning.ranking import auroc_interval
from engine.tuning.samples import doubt

SHARES = (0.1, 0.2, 0.4)  # of steps, at which the value of a score is given


@dataclass(frozen=True)
class Labelled:
    """Answers with the outcomes of their steps."""

    answers: Sequence[Answer]
    outcomes: Sequence[Outcomes]
    is_maths: IdMask

    @cached_property
    def scores(self) -> list[list[dict[Score, float]]]:
        """The scores of each step of each answer."""
        return [[step_scores(a, i, self.is_maths) for i in range(a.steps)] for a in self.answers]

    @cached_property
    def labels(self) -> list[list[bool | None]]:
        """Whether each step of each answer is wrong; None where it cannot be judged."""
        return [[o.wrong(i) for i in range(len(o.right) - 1)] for o in self.outcomes]

    def setting(self) -> dict[str, Any]:
        """The row about the answers: accuracies, labels, how difficulty persists."""
        steps = [mark for own in self.labels for mark in own]
        doubts = [[doubt(tuple(a.signals(i))) for i in range(a.steps)] for a in self.answers]
        known = [[float(m) for m in own if m is not None] for own in self.labels]
        alone = {
            "small": sum(o.right[-1] for o in self.outcomes),
            "large": sum(o.right[0] for o in self.outcomes),
        }
        count = len(self.answers)
        usage = [each.usage.count("large", "sampled") for each in self.outcomes]
        return {
            "kind": "setting",
            "n": count,
            "steps": len(steps),
            "judged": sum(mark is not None for mark in steps),
            "wrong": sum(bool(mark) for mark in steps),
            **{f"{name}_accuracy": right / count for name, right in alone.items()},
            **{f"{name}_interval": wilson(right, count) for name, right in alone.items()},
            "cut_off": sum(a.completion.finish_reason == "length" for a in self.answers),
            "unread": sum(a.read is None for a in self.answers),
            "runs": sum(each.runs for each in self.outcomes),
            "continued_tokens": sum(usage),
            "doubt_lag1": _plain(autocorrelation(doubts)),
            "wrong_lag1": _plain(autocorrelation(known)),
            "chance_accuracy": {str(s): by_chance(self.outcomes, s) for s in SHARES},
            "oracle_accuracy": {str(s): by_oracle(self.outcomes, s) for s in SHARES},
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each score, in the order of the windows."""
        names = dict.fromkeys(name for own in self.scores for step in own for name in step)
        for name in names:
            yield self._row(name)

    def _row(self, name: Score) -> dict[str, Any]:
        pairs = [
            (step[name], bool(mark), index)
            for index, (own, marks) in enumerate(zip(self.scores, self.labels, strict=True))
            for step, mark in zip(own, marks, strict=True)
            if mark is not None and name in step
        ]
        scores, wrong, groups = zip(*pairs, strict=True) if pairs else ((), (), ())
        area, low, high = auroc_interval(scores, wrong, groups)
        curve = takeover_curve([[s.get(name) for s in own] for own in self.scores], self.outcomes)
        return {
            "kind": "score",
            "signal": name[0],
            "window": name[1],
            "steps": len(pairs),
            "wrong": sum(wrong),
            "auroc": _plain(area),
            "auroc_low": _plain(low),
            "auroc_high": _plain(high),
            "caught": {str(s): _plain(caught_at(scores, wrong, s)) for s in SHARES},
            "accuracy": {str(s): accuracy_at(curve, s) for s in SHARES},
        }


def _plain(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return None if math.isnan(value) else value


def by_area(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of scores, the best first; without an area last."""
    scores = [row for row in rows if row["kind"] == "score"]
    return sorted(scores, key=lambda row: -1.0 if row["auroc"] is None else row["auroc"])[::-1]


def score_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each score, sorted by AUROC."""
    shares = [f"{share:.0%}" for share in SHARES]
    return render(
        (
            "signal",
            "window",
            "AUROC",
            "95% interval",
            "wrong / steps",
            *(f"caught at {share}" for share in shares),
            *(f"accuracy at {share}" for share in shares),
        ),
        [
            (
                row["signal"],
                row["window"],
                _number(row["auroc"]),
                f"{_number(row['auroc_low'])} - {_number(row['auroc_high'])}",
                f"{row['wrong']} / {row['steps']}",
                *(_number(row["caught"][str(share)]) for share in SHARES),
                *(_number(row["accuracy"][str(share)]) for share in SHARES),
            )
            for row in by_area(rows)
        ],
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def setting_lines(row: dict[str, Any]) -> str:
    """What was labelled, and what the values of the table are to be compared with."""
    lines = [
        f"{row['n']} answers of the small model, {row['steps']} steps: {row['judged']} can be "
        f"judged, {row['wrong']} are wrong ({row['runs']} continuations of the large model, "
        f"{row['continued_tokens']} tokens)",
        f"accuracy: small alone {row['small_accuracy']:.3f}, large alone "
        f"{row['large_accuracy']:.3f}",
        "lag-1 autocorrelation within an answer: of the small model's doubt "
        f"{_number(row['doubt_lag1'])}, of being wrong {_number(row['wrong_lag1'])}",
    ]
    for share in map(str, SHARES):
        chance, labels = row["chance_accuracy"][share], row["oracle_accuracy"][share]
        lines.append(
            f"accuracy with the large model for {float(share):.0%} of the steps: by chance "
            f"{chance:.3f}, by the labels {labels:.3f}"
        )
    if row["cut_off"]:
        lines.append(f"{row['cut_off']} answers of the small model were cut off: see --max-tokens")
    if row["unread"]:
        lines.append(f"{row['unread']} answers have no reading: its run wrote another text")
    return "\n".join(lines)
