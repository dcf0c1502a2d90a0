"""What does routing save? Accuracy and FLOPs of every policy on the same problems.

python -m bench.flops                                    the embedded pair, 500 problems
python -m bench.flops --model-pair qwen-1.5b/qwen-32b    prices a stored trace, runs nothing
python -m bench.flops --model-pair qwen-1.5b/qwen-7b --small DIR --large DIR --dataset F.jsonl
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench import dataset
from bench.calibrate import calibrate
from bench.evaluate import Evaluation, TestSet, arithmetic_tests, evaluate
from bench.plot import accuracy_plot, check_plot
from bench.pricing import price_trace, priced_table
from bench.rows import RowWriter
from bench.stats import paired_difference
from bench.table import policies_table, trace_lines
from bench.tasks import arithmetic
from engine import Calibration, Engine, EngineConfig, SteerError
from engine.config import NAMED_PAIRS, Pair
from engine.files import check_output
from engine.routing.names import POLICIES, make_policy

INTERRUPTED = 130
_NOTES = """\
FLOPs are matrix products, relative to policy large in this run (lazy catch-up, no prefix cache):
  decode        rows that gave a token, kept or dropped: the field's habit
  with catch-up all rows, incremental prefills included: what this engine does
  re-prefill    the whole prefix again at each entry of a model: what stateless servers do"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.flops",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model-pair",
        default="tiny",
        metavar="PAIR",
        help="one of: " + ", ".join(NAMED_PAIRS) + " (default: tiny, which comes with its weights)",
    )
    add("--problems", type=int, metavar="N", help="problems to use (default: 500, or all given)")
    add(
        "--policies",
        default="small,large,random,threshold,steer",
        metavar="LIST",
        help="comma-separated: " + ", ".join(POLICIES) + " or threshold:SIGNAL:VALUE; large always "
        "runs, as the baseline; random takes its share from steer (default: all)",
    )
    add(
        "--mix",
        choices=sorted(arithmetic.MIXES),
        help="shares of easy, medium and hard operations in the embedded task (default: mixed)",
    )
    add("--seed", type=int, help="of the embedded problems (default: 0)")
    add("--small", type=Path, metavar="DIR", help="weights of the small model")
    add("--large", type=Path, metavar="DIR", help="weights of the large model")
    add(
        "--dataset",
        type=Path,
        metavar="FILE",
        help='problems, a JSON object {"prompt", "answer"} a line; the first fifth calibrates',
    )
    add("--max-tokens", type=int, metavar="N", help="per answer, with --dataset (default: 1024)")
    add("--dtype", default="float32", help="of weights and KV: float32 (default) or bfloat16")
    add(
        "--arena-tokens",
        type=int,
        default=EngineConfig.arena_tokens,
        metavar="N",
        help="KV room in tokens of the large model (default: %(default)s)",
    )
    add(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="use this calibration instead of fitting one on problems apart from the test set",
    )
    add("--save-calibration", type=Path, metavar="FILE", help="write the calibration used")
    add("--save-traces", type=Path, metavar="DIR", help="write each policy's trace, JSON lines")
    add("--trace", type=Path, metavar="FILE", help="price this trace (pairs without weights)")
    add("--json", type=Path, metavar="FILE", help="write a result row a line")
    add("--plot", type=Path, metavar="FILE", help="write accuracy against FLOPs as a picture")
    return parser


def _named(options: argparse.Namespace) -> list[str]:
    return [p.strip() for p in options.policies.split(",") if p.strip()]


def _check(options: argparse.Namespace) -> list[str]:
    """The policies to run, large first and random last; SteerError on a bad combination."""
    if options.problems is not None and options.problems < 1:
        raise SteerError(f"--problems must be at least 1, got {options.problems}")
    check_output(options.json, "--json")
    check_output(options.save_calibration, "--save-calibration")
    if options.plot:
        check_plot(options.plot)
    policies = _named(options)
    if not policies:
        raise SteerError("--policies names no policy")
    for policy in policies:
        if policy != "steer":  # which needs its calibration first
            make_policy(policy)
    if "random" in policies and "steer" not in policies:
        raise SteerError("policy random takes its share from steer: add steer, or use random:SHARE")
    wanted = [p for p in dict.fromkeys(policies) if p not in ("large", "steer", "random")]
    tail = [p for p in ("steer", "random") if p in policies]
    return ["large", *wanted, *tail]


def _refuse(options: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if getattr(options, name) is not None:
            raise SteerError(f"--{name.replace('_', '-')} {why}")


def _tests(options: argparse.Namespace) -> tuple[TestSet, TestSet]:
    """The calibration and the test problems, disjoint."""
    if options.dataset:
        _refuse(
            options, ("mix", "seed"), "is about the embedded task; --dataset has its own problems"
        )
        problems = dataset.read_problems(options.dataset)[: options.problems]
        if len(problems) < 2:
            raise SteerError(f"{options.dataset}: needs at least 2 problems, one to calibrate")
        cut = max(1, len(problems) // 5)
        parts = problems[:cut], problems[cut:]
        limit = 1024 if options.max_tokens is None else options.max_tokens
        first, second = (TestSet(p, dataset.is_correct, limit) for p in parts)
        return first, second
    _refuse(options, ("max_tokens",), "goes with --dataset")
    count = options.problems or 500
    seed, mix = options.seed or 0, options.mix or "mixed"
    return (
        arithmetic_tests("calibration", min(400, max(50, count)), seed, mix),
        arithmetic_tests("test", count, seed, mix),
    )


def _check_lengths(engine: Engine, tests: TestSet) -> None:
    """SteerError for the first problem that can never run: said before any of them does."""
    for problem in tests.problems:
        try:
            tokens = len(engine.tokenizer.encode(problem.prompt))
        except SteerError as error:
            raise SteerError(f"{problem.where}: {error}") from None
        if tokens + tests.max_tokens > engine.max_context:
            raise SteerError(
                f"{problem.where}: the prompt's {tokens} tokens and --max-tokens "
                f"{tests.max_tokens} exceed the context of {engine.max_context}"
            )


class Run:
    """One comparison: rows appear in the JSON file as soon as their policy is done."""

    def __init__(self, options: argparse.Namespace, engine: Engine, rows: RowWriter) -> None:
        self.options = options
        self.engine = engine
        self.calibration: Calibration | None = None
        self.evaluations: dict[str, Evaluation] = {}
        self._rows = rows

    def prepare(self, tests: TestSet) -> None:
        """Load or fit the calibration."""
        path = self.options.calibration
        if path:
            self.calibration = Calibration.load(path, self.engine.fingerprint)
        else:
            self.calibration = calibrate(self.engine, tests, progress=True)
        if self.options.save_calibration:
            self.calibration.save(self.options.save_calibration)

    def policy(self, name: str, tests: TestSet) -> None:
        """Run one policy and write its row."""
        share = self.evaluations["steer"].large_step_share if name == "random" else 0.0
        policy = make_policy(name, self.calibration, share=share)
        folder = self.options.save_traces
        trace = folder / f"{name.replace(':', '-')}.jsonl" if folder else None
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
        row = self.evaluations[name].row(self.evaluations["large"])
        if name == "steer" and self.calibration:
            row |= {"tau": self.calibration.tau, "signal": self.calibration.signal}
        return {
            **row,
            "pair": self.options.model_pair,
            "fingerprint": self.engine.fingerprint,
            "dtype": self.options.dtype,
            "problems": self._problems(),
        }

    def _problems(self) -> str:
        options = self.options
        task = f"arithmetic {options.mix or 'mixed'}, seed {options.seed or 0}"
        return str(options.dataset or task)

    def report(self) -> str:
        """The table, the paired difference, and what STEER saved."""
        if "large" not in self.evaluations:
            return "no policy was finished"
        rows = [self.row(name) for name in self._ordered()]
        parts = [policies_table(rows), *self._troubles(), "", _NOTES]
        if "steer" in self.evaluations:
            parts += ["", self._verdict()]
        return "\n".join(parts)

    def _troubles(self) -> list[str]:
        return [
            f"{name}: {found.ended(reason)} of {len(found.correct)} answers {what}"
            for name, found in self.evaluations.items()
            for reason, what in (
                ("error", "ended in an error (unusable logits)"),
                ("length", "were cut off at the token limit"),
            )
            if found.ended(reason)
        ]

    def _ordered(self) -> list[str]:
        asked = dict.fromkeys([*_named(self.options), "large"])
        return [name for name in asked if name in self.evaluations]

    def _verdict(self) -> str:
        steer, large = self.evaluations["steer"], self.evaluations["large"]
        points = [100 * d for d in paired_difference(steer.correct, large.correct)]
        saved = {a: _saved(steer.flops[a] / large.flops[a]) for a in steer.flops}
        tau = self.calibration.tau if self.calibration else float("nan")
        return (
            f"STEER minus large, paired: {points[0]:+.2f} points, 95% interval "
            f"{points[1]:+.2f} to {points[2]:+.2f} (n={len(steer.correct)}, tau {tau:g})\n"
            f"STEER's FLOPs against large: {saved['decode']} decode-only, "
            f"{saved['catchup']} with catch-up, {saved['reprefill']} with full re-prefill"
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


def run_pair(options: argparse.Namespace, pair: Pair) -> int:
    """Run the policies on a pair whose weights are here."""
    order = _check(options)
    calibration, tests = _tests(options)
    # No prefix cache, so that no policy lives on what another one has computed.
    config = EngineConfig(prefix_cache=False, arena_tokens=options.arena_tokens)
    engine = Engine(pair, config=config, dtype=options.dtype)
    if options.dataset:
        _check_lengths(engine, calibration)
        _check_lengths(engine, tests)
    if options.save_traces:
        options.save_traces.mkdir(parents=True, exist_ok=True)
    code = 0
    with RowWriter(options.json) as rows:
        run = Run(options, engine, rows)
        try:
            for name in order:
                if name == "steer":
                    run.prepare(calibration)
                run.policy(name, tests)
        except KeyboardInterrupt:
            print("interrupted: these policies were finished", file=sys.stderr)
            code = INTERRUPTED
        except SteerError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
    print(run.report())
    if "steer" in run.evaluations:
        print("\n" + run.example())
    if options.plot and run.evaluations:
        title = f"{pair.name}, {len(tests.problems)} problems"
        accuracy_plot([run.row(name) for name in run.evaluations], options.plot, title)
    return code


def price_pair(options: argparse.Namespace, pair: Pair) -> int:
    """Price a trace at a pair's shapes."""
    needy = ("dataset", "calibration", "save_calibration", "save_traces", "plot", "mix", "seed")
    _refuse(options, needy, "needs weights: pass --small DIR and --large DIR")
    _check(options)
    rows = price_trace(pair, options.trace, options.problems)
    what = options.trace or "a stored trace of the embedded pair"
    print(f"Nothing was run and accuracy is not measured: {pair.name} is priced from {what}.")
    print(f"{rows[0]['n']} requests, {rows[-1]['trace']}.\n")
    print(priced_table(rows))
    tokens, steps = rows[0]["tokens"], max(1, rows[0]["steps"])
    print(
        "\nFLOPs relative to large alone, writing as many tokens. The trace's lengths count: it\n"
        f"has {tokens / rows[0]['n']:.1f} tokens a request and {tokens / steps:.1f} a step."
    )
    with RowWriter(options.json) as writer:
        for row in rows:
            writer.write(row)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, 2 on bad input, 130 when interrupted."""
    options = build_parser().parse_args(arguments)
    try:
        pair = Pair.named(options.model_pair, options.small, options.large)
        if pair.small is None:
            return price_pair(options, pair)
        if options.trace:
            raise SteerError("--trace prices a pair without weights; this pair can be run")
        if pair.name != "tiny" and not options.dataset:
            raise SteerError(f"pair {pair.name} needs problems: pass --dataset FILE.jsonl")
        return run_pair(options, pair)
    except (SteerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
