"""Chooses the mark of the policy ``verify`` for a target, by runs of it on the prompts.

Unlike tau it needs no calibration file: the mark is a ratio of two probabilities of the large
model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.errors import SteerError
from engine.routing.guessed import Verify
from engine.routing.speculation import VERIFY
from engine.tuning.target import Bench, Run, Target

MARKS = (0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.8)


@dataclass(frozen=True)
class ChosenMark:
    """The result of the search.

    mark: the lowest one that meets a lower bound on accuracy, the highest that meets an upper bound
        on cost; where none does, the nearest end of ``MARKS``.
    met: whether it meets the target.
    runs: the results of the marks that were run; a run's share is that of the large model's tokens.
    """

    target: Target
    mark: float
    met: bool
    large: Run
    runs: dict[float, Run]

    @property
    def text(self) -> str:
        """A table of the runs, and the recommendation."""
        lines = [f"{'mark':>8}{'accuracy':>10}{'large tokens':>14}{'decode':>8}{'catch-up':>10}"]
        rows = [(f"{mark:g}", run) for mark, run in sorted(self.runs.items())]
        for name, run in [*rows, ("large", replace(self.large, share=1.0))]:
            costs = [run.flops[a] / self.large.flops[a] for a in ("decode", "catchup")]
            lines.append(
                f"{name:>8}{run.accuracy:>10.3f}{run.share:>14.1%}{costs[0]:>8.3f}{costs[1]:>10.3f}"
            )
        met = "met" if self.met else "NOT met by any mark"
        lines.append(f"target {self.target}: {met}")
        lines.append(
            f"recommended: --policy {VERIFY}:{self.mark:g}; no file is needed. It was chosen on "
            "these prompts: measure it on others"
        )
        return "\n".join(lines)


def choose_mark(target: Target, bench: Bench) -> ChosenMark:
    """By bisection: accuracy and the large model's share rise with the mark, up to noise.

    SteerError for a target that no run can be compared with.
    """
    check_mark_target(target)
    runs: dict[float, Run] = {}

    def met(index: int) -> bool:
        mark = MARKS[index]
        if mark not in runs:
            runs[mark] = _run(bench, mark)
        return target.met(runs[mark], bench.large)

    low, high = 0, len(MARKS) - 1
    while low < high:
        middle = (low + high + (not target.rises)) // 2
        if target.rises:
            low, high = (low, middle) if met(middle) else (middle + 1, high)
        else:
            low, high = (middle, high) if met(middle) else (low, middle - 1)
    return ChosenMark(target, MARKS[low], met(low), bench.large, runs)


def check_mark_target(target: Target | None) -> None:
    """SteerError unless runs of the policy can be compared with the target."""
    if target is None or target.kind == "agreement":
        raise SteerError(
            "--mark needs a --target that answers can meet: loss:X, accuracy:X, share:X or flops:X"
        )


def _run(bench: Bench, mark: float) -> Run:
    done = bench.answers(Verify(mark=mark))
    tokens = sum(len(each.token_ids) for each in done)
    by_large = sum(step.large_tokens for each in done for step in each.steps)
    return replace(bench.judge(done), share=by_large / max(1, tokens))
