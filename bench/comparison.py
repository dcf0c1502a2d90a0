"""One run of ``bench.flops``: every policy on the same problems, and the tables of it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from bench.calibrate import calibrate, step_mixtures
from bench.evaluate import Evaluation, TestSet, evaluate
from bench.prices.options import PriceFlags
from bench.prices.price_list import PriceList
from bench.prices.table import against, prices_notes, prices_table
from bench.rows import RowWriter
from bench.stats import paired_difference
from bench.table import again_notes, policies_table, trace_lines
from engine import Calibration, Engine, SteerError
from engine.conversation import Conversation
from engine.routing.names import is_calibrated, make_policy, split_name

_NOTES = """\
FLOPs are matrix products, relative to policy large in this run (lazy catch-up, no prefix cache):
  decode        rows that gave a token, kept or dropped: the field's habit
  with catch-up all rows, incremental prefills included: what this engine does
  re-prefill    the whole prefix again at each entry of a model: what stateless servers do
computed again is the share of rows whose KV had been there and was given up for room."""
_REMEDY = "raise --arena-tokens, or run fewer at once (--max-sequences)"


def named(options: argparse.Namespace) -> list[str]:
    """The policies that --policies lists."""
    return [p.strip() for p in options.policies.split(",") if p.strip()]


def needs_share(name: str) -> bool:
    """Whether the policy is random without a share, with guesses or without."""
    return split_name(name)[0] == "random"


class Comparison:
    """Policies on the same problems; a row is written as soon as its policy is done."""

    def __init__(self, options: argparse.Namespace, engine: Engine, rows: RowWriter) -> None:
        self.options = options
        self.engine = engine
        self.calibration: Calibration | None = None
        self.evaluations: dict[str, Evaluation] = {}
        self.prices = PriceList.of(PriceFlags.of(options), engine.shapes)
        self._rows = rows
        self._limit = 0  # tokens of an answer

    def prepare(self, tests: TestSet) -> None:
        """Load or fit the calibration."""
        path = self.options.calibration
        if path:
            self.calibration = Calibration.load(path, self.engine.fingerprint)
        else:
            window = self.options.window
            self.calibration = calibrate(self.engine, tests, progress=True, window=window)
            if any(split_name(name)[0].startswith("steer-served") for name in named(self.options)):
                self.calibration = step_mixtures(self.engine, tests, self.calibration)
        if self.options.save_calibration:
            self.calibration.save(self.options.save_calibration)

    def policy(self, name: str, tests: TestSet) -> None:
        """Run one policy and write its row."""
        share = self.evaluations["steer"].large_step_share if needs_share(name) else 0.0
        price = self.engine.row_price
        policy = make_policy(name, self.calibration, share, price)
        folder = self.options.save_traces
        trace = folder / f"{name.replace(':', '-')}.jsonl" if folder else None
        self._limit = tests.max_tokens
        done = evaluate(self.engine, policy, tests, name, progress=True, trace=trace)
        if name == "large" and done.ended("error"):
            raise SteerError(
                f"{done.ended('error')} of {len(done.correct)} answers of the large model alone "
                "ended in an error (unusable logits): nothing can be compared with it"
            )
        self.evaluations[name] = done
        self._rows.write(self.row(name))

    def row(self, name: str) -> dict[str, Any]:
        """The result row of a policy that is done."""
        done, large = self.evaluations[name], self.evaluations["large"]
        row = done.row(large) | self.prices.fields(done.usages, large.usages)
        if is_calibrated(name) and self.calibration:
            calibration = self.calibration
            row |= {
                "tau": calibration.tau,
                "signal": calibration.signal,
                "window": calibration.window,
            }
        return {
            **row,
            "pair": self.options.model_pair,
            "fingerprint": self.engine.fingerprint,
            "dtype": self.options.dtype,
            "problems": self._problems(),
            **Conversation.of(self.options).settings(),
        }

    def _problems(self) -> str:
        options = self.options
        task = f"{options.task or 'arithmetic'} {options.mix or 'mixed'}, seed {options.seed or 0}"
        task += ", rigid style" if options.style == "rigid" else ""
        return str(options.dataset or task)

    def report(self) -> str:
        """The table, the paired difference, and what STEER saved."""
        if "large" not in self.evaluations:
            return "no policy was finished"
        rows = [self.row(name) for name in self._ordered()]
        again = again_notes(rows, _REMEDY)
        parts = [policies_table(rows), *self._troubles(), *again, "", _NOTES]
        toy = self.options.model_pair == "tiny"
        parts += ["", prices_table(rows), "", prices_notes(rows, toy)]
        if "steer" in self.evaluations:
            parts += ["", self._verdict()]
        return "\n".join(parts)

    def _troubles(self) -> list[str]:
        """A line for each policy with answers that ended too early, with the reason."""
        limit = f"--max-tokens {self._limit}" if self.options.dataset else f"{self._limit} tokens"
        lines = []
        for name, done in self.evaluations.items():
            count = len(done.correct)
            if broken := done.ended("error"):
                lines.append(
                    f"{broken} of {count} answers of policy {name} ended in an error "
                    "(unusable logits)"
                )
            if done.cut_off:
                lines.append(
                    f"{done.cut_off} of {count} answers of policy {name} were cut off at {limit} "
                    "and count as they stand"
                )
        return lines

    def _ordered(self) -> list[str]:
        asked = dict.fromkeys([*named(self.options), "large"])
        return [name for name in asked if name in self.evaluations]

    def _verdict(self) -> str:
        steer, large = self.evaluations["steer"], self.evaluations["large"]
        points = [100 * d for d in paired_difference(steer.correct, large.correct)]
        saved = {a: _saved(steer.flops[a] / large.flops[a]) for a in steer.flops}
        tau = self.calibration.tau if self.calibration else float("nan")
        others = [name for name in ("large", "speculate") if name in self.evaluations]
        costs = against(self.row("steer"), [self.row(name) for name in others])
        return (
            f"STEER minus large, paired: {points[0]:+.2f} points, 95% interval "
            f"{points[1]:+.2f} to {points[2]:+.2f} (n={len(steer.correct)}, tau {tau:g})\n"
            f"STEER's FLOPs against large: {saved['decode']} decode-only, "
            f"{saved['catchup']} with catch-up, {saved['reprefill']} with full re-prefill\n"
            f"{costs}"
        )

    def example(self) -> str:
        """One trace in which both models wrote."""
        both = [
            c
            for c in self.evaluations["steer"].completions
            if {s.model for s in c.steps} == {"small", "large"}
        ]
        if not both:
            return "no trace in which both models wrote"
        prompt = self.engine.tokenizer.decode(both[0].prompt_token_ids).strip()
        colour = sys.stdout.isatty()
        return f"A trace that both models wrote: {prompt}\n{trace_lines(both[0], colour)}"


def _saved(relative: float) -> str:
    return f"{abs(1 - relative):.1%} {'fewer' if relative <= 1 else 'more'}"
