"""Where does STEER lose against a router that knows every error? Four causes, one figure each.

    python -m bench.misses --task planning --problems 1000

STEER runs with the tau that calibration problems give, and then with one kind of its mistakes
mended, by somebody who knows which steps the small model gets wrong:

    misses              it keeps a step that the small model gets wrong          -> accuracy
    false alarms        it hands over a step that the small model gets right     -> FLOPs
    lost answers        it hands over after a step that is wrong already         -> FLOPs
    reading             the large model reads what it did not write, for the     -> FLOPs
                        steps that have to be handed over

FLOPs are with catch-up, relative to the large model alone. What the knowing costs is not counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.calibrate import calibrate
from bench.evaluate import Evaluation, evaluate
from bench.report.domain import Domain, domain
from bench.rows import RowWriter
from bench.stats import paired_difference
from bench.table import render
from bench.tasks.registry import TASKS
from engine import Boundary, Decision, Engine, SamplingParams, Steer, SteerError, Window
from engine.files import check_output
from engine.routing.policy import PolicyBase

_LONGEST = 48  # tokens of a step


@dataclass(frozen=True)
class Known:
    """What is true of a boundary: whether the small model would get the step wrong, and whether a
    step before it is wrong."""

    wrong: bool
    lost: bool


class Knowing:
    """Asks the small model for each step, beside the run, and the task's checker about it."""

    def __init__(self, where: Domain) -> None:
        self._domain = where
        self._engine = Engine(where.pair)
        self._problems = {tuple(self._encode(p.prompt)): p for p in where.test.problems}

    def _encode(self, text: str) -> list[int]:
        return self._engine.tokenizer.encode(text)

    def look(self, tokens: list[int], boundary: Boundary) -> Known:
        """The truth about a boundary of a text."""
        problem = self._problems[tuple(tokens[: boundary.prompt_tokens])]
        params = SamplingParams(max_tokens=_LONGEST, stop=self._engine.config.delimiters)
        (step,) = self._engine.generate([tokens], params, "small")
        before = self._engine.tokenizer.text_of(tokens[boundary.prompt_tokens :])
        first = self._domain.first_error(problem, before + step.text)
        return Known(first == boundary.step, first is not None and first < boundary.step)


@dataclass(frozen=True)
class Mended(PolicyBase):
    """STEER's decisions, changed where ``mend`` says so: of its decision and the truth."""

    steer: Steer
    engine: Engine
    knowing: Knowing
    mend: Callable[[bool, Known], bool]
    name: str = "mended"
    reads: bool = True

    @property
    def window(self) -> Window:
        """STEER's."""
        return self.steer.window

    def decide(self, boundary: Boundary) -> Decision:
        """Hand over or not."""
        decision = self.steer.decide(boundary)
        tokens = self.engine.scheduler.tokens_since(boundary.request, 0).tolist()
        known = self.knowing.look(tokens[: boundary.position], boundary)
        hands = self.mend(decision.model == "large", known)
        return Decision("large" if hands else "small", decision.reason)


MENDED: dict[str, Callable[[bool, Known], bool]] = {
    "no misses": lambda hands, known: hands or known.wrong,
    "no false alarms": lambda hands, known: hands and known.wrong,
    "no lost answers": lambda hands, known: hands and not known.lost,
    "all known": lambda hands, known: known.wrong,
}


class Misses:
    """The runs, each on the same problems."""

    def __init__(self, task: str, problems: int) -> None:
        self.task = task
        self._domain = domain(f"{task}-open", problems)
        self._engine = Engine(self._domain.pair)
        self.done: dict[str, Evaluation] = {}

    @cached_property
    def steer(self) -> Steer:
        """With the tau of the calibration problems."""
        return Steer(calibrate(self._engine, self._domain.calibration))

    def run(self) -> None:
        """Large alone, STEER, and STEER mended in each way."""
        knowing, steer = Knowing(self._domain), self.steer
        policies: dict[str, Any] = {"large": self._engine.policy("large"), "steer": steer}
        for name, mend in MENDED.items():
            policies[name] = Mended(steer, self._engine, knowing, mend)
        for name, policy in tqdm(policies.items(), "bench.misses", unit="run"):
            tests = self._domain.test
            self.done[name] = evaluate(self._engine, policy, tests, name, count_spared=True)

    def cost(self, name: str, accounting: str = "catchup") -> float:
        """FLOPs relative to the large model alone, counted with catch-up."""
        return self.done[name].flops[accounting] / self.done["large"].flops["catchup"]

    def rows(self) -> list[dict[str, Any]]:
        """A row for each run, and one for each cause."""
        runs = [
            {
                "bench": "misses",
                "kind": "run",
                "task": self.task,
                "n": len(done.correct),
                "run": name,
                "accuracy": done.accuracy,
                "large_step_share": done.large_step_share,
                "flops_catchup": self.cost(name),
            }
            for name, done in self.done.items()
        ]
        return runs + [
            {"bench": "misses", "kind": "cause", "task": self.task, "tau": self._tau} | cause
            for cause in self._causes()
        ]

    @property
    def _tau(self) -> float:
        return self.steer.calibration.tau

    def _causes(self) -> list[dict[str, Any]]:
        steer, whole = self.done["steer"], self.done["no misses"]
        lost = paired_difference(whole.correct, steer.correct)
        reading = self.cost("all known") - self.cost("all known", "decode")
        return [
            {"cause": "misses", "points": 100 * lost[0], "interval": [100 * x for x in lost[1:]]},
            {"cause": "false alarms", "flops": self.cost("steer") - self.cost("no false alarms")},
            {"cause": "lost answers", "flops": self.cost("steer") - self.cost("no lost answers")},
            {"cause": "reading", "flops": reading},
        ]


def show(rows: list[dict[str, Any]]) -> str:
    """Two tables."""
    runs = [
        (
            r["run"],
            f"{r['accuracy']:.3f}",
            f"{r['large_step_share']:.1%}",
            f"{r['flops_catchup']:.3f}",
        )
        for r in rows
        if r["kind"] == "run"
    ]
    causes = [
        (
            r["cause"],
            "{:.2f} ({:.2f} to {:.2f}) points".format(r["points"], *r["interval"])
            if "points" in r
            else f"{r['flops']:.3f} of large alone",
        )
        for r in rows
        if r["kind"] == "cause"
    ]
    header = ("run", "accuracy", "large steps", "FLOPs with catch-up")
    return render(header, runs) + "\n\n" + render(("cause", "what it costs"), causes)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.misses",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--task", choices=TASKS, default="planning", help="default: %(default)s")
    add("--problems", type=int, default=1000, metavar="N", help="to answer (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write a result row a line")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 on bad input."""
    options = build_parser().parse_args(arguments)
    try:
        if options.problems < 1:
            raise SteerError(f"--problems must be at least 1, got {options.problems}")
        check_output(options.json, "--json")
        misses = Misses(options.task, options.problems)
        misses.run()
        rows = misses.rows()
        with RowWriter(options.json) as writer:
            for row in rows:
                writer.write(row)
    except (SteerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(show(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
