"""What does speculation gain in time, and cost in FLOPs? The large model alone, and with guesses.

    python -m bench.speculate                                    the embedded pair
    python -m bench.speculate --small A --large B --dtype bfloat16 --problems 8
                                                                 another pair, on word problems

The policies take turns on the same problems, some problems at once. Times are those of a token:
medians over the turns, and the ratio to the first policy within each turn. Texts that differ from
the first policy's are counted: with compiled kernels on a CPU there must be none.

A second table has what time on a card and money follow from the same counts (modelled).
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from tqdm import tqdm

from bench.evaluate import TestSet, task_tests, ticks_of
from bench.prices.options import PriceFlags, add_flags
from bench.prices.price_list import PriceList
from bench.prices.table import prices_notes, prices_table
from bench.real_pair import problems as word_problems
from bench.rows import RowWriter
from bench.table import render
from bench.tasks.registry import TASKS
from engine import Completion, Engine, EngineConfig, SamplingParams, SteerError, Usage
from engine._core import MOST_DRAFTS
from engine.accounting.pricing import ACCOUNTINGS, bytes_moved, pair_flops
from engine.files import check_output
from engine.routing.names import is_calibrated, make_policy

POLICIES = "large,speculate:2,speculate:4,speculate:7"


@dataclass
class Way:
    """One policy with so many problems at once.

    seconds, cpu: of each turn, for a token.
    """

    policy: str
    at_once: int
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    done: list[Completion] = field(default_factory=list)
    ticks: tuple[int, int] = (0, 0)

    @property
    def usages(self) -> list[Usage]:
        """Of each answer of one turn."""
        return [each.usage for each in self.done]

    @property
    def usage(self) -> Usage:
        """Of one turn."""
        return sum(self.usages, Usage())


def turn(engine: Engine, tests: TestSet, params: SamplingParams, way: Way) -> None:
    """Answer all problems once."""
    asked, policy = tests.prompts(engine), engine.policy(way.policy)
    before = ticks_of(engine)
    started = time.perf_counter(), time.process_time()
    done: list[Completion] = []
    for first in range(0, len(asked), way.at_once):
        done += engine.generate(asked[first : first + way.at_once], params, policy)
    tokens = sum(len(each.token_ids) for each in done)
    way.seconds.append((time.perf_counter() - started[0]) / tokens)
    way.cpu.append((time.process_time() - started[1]) / tokens)
    after = ticks_of(engine)
    way.done, way.ticks = done, (after[0] - before[0], after[1] - before[1])


def row_of(engine: Engine, way: Way, base: Way, prices: PriceList) -> dict[str, Any]:
    """The result row; ratios to ``base``, the first policy with as many problems at once."""
    usage, other, guessed = way.usage, base.usage, way.usage.speculated
    shapes, element = engine.shapes, engine.dtype.itemsize
    moved, least = (bytes_moved(w.usage, w.ticks, shapes, element) for w in (way, base))
    gains = {
        name: [b / a for a, b in zip(getattr(way, name), getattr(base, name), strict=True)]
        for name in ("seconds", "cpu")
    }
    different = sum(a.token_ids != b.token_ids for a, b in zip(way.done, base.done, strict=True))
    tokens = sum(len(each.token_ids) for each in way.done)
    written = sum(step.large_tokens for each in way.done for step in each.steps)
    return {
        "bench": "speculate",
        "pair": engine.fingerprint,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "policy": way.policy,
        "against": base.policy,
        "at_once": way.at_once,
        "n": len(way.done),
        "turns": len(way.seconds),
        "tokens": tokens,
        "large_token_share": written / max(1, tokens),
        "accuracy": None,
        "different": different,
        "ms_a_token": 1000 * median(way.seconds),
        "cpu_ms_a_token": 1000 * median(way.cpu),
        "times_faster": median(gains["seconds"]),
        "times_faster_spread": _spread(gains["seconds"]),
        "times_less_cpu": median(gains["cpu"]),
        "times_less_cpu_spread": _spread(gains["cpu"]),
        **{
            f"flops_{each}": pair_flops(usage, shapes, each) / pair_flops(other, shapes, each)
            for each in ACCOUNTINGS
        },
        "weights_read": moved["weights"] / least["weights"],
        "tokens_a_pass": guessed.tokens_per_pass or 1.0,
        "acceptance": guessed.acceptance,
        "speculated": guessed.to_json(),
        **prices.fields(way.usages, base.usages),
    }


def _spread(values: list[float]) -> list[float]:
    """20th and 80th percentile."""
    if len(values) < 2:
        return [values[0], values[0]]
    cuts = quantiles(values, n=5, method="inclusive")
    return [cuts[0], cuts[3]]


def show(rows: list[dict[str, Any]]) -> str:
    """The table."""
    return render(
        (
            "policy",
            "at once",
            "ms a token",
            "times faster (20-80%)",
            "less CPU",
            "tokens a pass",
            "accepted",
            "FLOPs decode",
            "with catch-up",
            "weights read",
            "texts that differ",
        ),
        [
            (
                r["policy"],
                str(r["at_once"]),
                f"{r['ms_a_token']:.3f}",
                "{:.2f} ({:.2f}-{:.2f})".format(r["times_faster"], *r["times_faster_spread"]),
                f"{r['times_less_cpu']:.2f}",
                f"{r['tokens_a_pass']:.2f}",
                f"{r['acceptance']:.1%}" if r["speculated"]["compared"] else "-",
                *(f"{r[name]:.2f}" for name in ("flops_decode", "flops_catchup", "weights_read")),
                str(r["different"]),
            )
            for r in rows
        ],
    )


def show_prices(rows: list[dict[str, Any]], toy: bool) -> str:
    """The table of time and money, with its notes."""
    named = [r | {"policy": f"{r['policy']}, {r['at_once']} at once"} for r in rows]
    return f"{prices_table(named)}\n\n{prices_notes(rows, toy, rows[0]['against'])}"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.speculate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--small", type=Path, metavar="PATH", help="this small model instead of the embedded one")
    add("--large", type=Path, metavar="PATH", help="this large model; goes with --small")
    add("--dtype", default="float32", help="of weights and KV: float32 (default) or bfloat16")
    add("--task", choices=TASKS, help="of the embedded pair (default: arithmetic)")
    add(
        "--policies",
        default=POLICIES,
        metavar="LIST",
        help="comma-separated; all are compared with the first (default: %(default)s)",
    )
    add("--at-once", default="1,8", metavar="LIST", help="problems at once (default: %(default)s)")
    add("--problems", type=int, default=40, metavar="N", help="to answer (default: %(default)s)")
    add("--turns", type=int, default=5, metavar="N", help="of each policy (default: %(default)s)")
    add("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    add("--max-tokens", type=int, metavar="N", help="per answer (default: the task's)")
    add("--json", type=Path, metavar="FILE", help="write a result row a line")
    add_flags(parser.add_argument_group("time and money"))
    return parser


def _tests(options: argparse.Namespace) -> TestSet:
    for name in ("problems", "turns"):
        if getattr(options, name) < 1:
            raise SteerError(f"--{name} must be at least 1, got {getattr(options, name)}")
    if (options.small is None) != (options.large is None):
        raise SteerError("--small and --large go together: pass both, or neither")
    if options.small and options.task:
        raise SteerError("--task is of the embedded pair; with --small there are word problems")
    check_output(options.json, "--json")
    if options.small:
        return word_problems.as_chat(word_problems.draw(options.problems, 0)[0])
    return task_tests("test", options.problems, task=options.task or "arithmetic")


def _loads(text: str) -> list[int]:
    if not all(part.isdecimal() and int(part) for part in text.split(",")):
        raise SteerError(f"--at-once takes numbers from 1, as in 1,8; got {text!r}")
    return [int(part) for part in text.split(",")]


def run(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Append the rows to ``rows``; each is written, too, when its number at once is done."""
    flags = PriceFlags.of(options)
    tests, loads = _tests(options), _loads(options.at_once)
    policies = [name.strip() for name in options.policies.split(",")]
    for name in policies:
        if not is_calibrated(name):  # those that are need the engine first
            make_policy(name)
    limit = tests.max_tokens if options.max_tokens is None else options.max_tokens
    params = SamplingParams(max_tokens=limit, temperature=options.temperature, seed=0)
    most = max(loads)
    config = EngineConfig(
        prefix_cache=False, max_sequences=most, max_drawn_rows=most * (MOST_DRAFTS + 1)
    )
    pair = "custom" if options.small else "tiny"
    engine = Engine(
        pair, small=options.small, large=options.large, config=config, dtype=options.dtype
    )
    prices = PriceList.of(flags, engine.shapes)
    with RowWriter(options.json, temperature=options.temperature) as writer:
        for at_once in loads:
            ways = [Way(policy, at_once) for policy in policies]
            turns = [way for _ in range(options.turns) for way in ways]
            for way in tqdm(turns, f"bench.speculate, {at_once} at once", unit="turn"):
                turn(engine, tests, params, way)
            for way in ways:
                rows.append(row_of(engine, way, ways[0], prices))
                writer.write(rows[-1])


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 on bad input, 130 when interrupted."""
    options = build_parser().parse_args(arguments)
    rows: list[dict[str, Any]] = []
    code = 0
    try:
        run(options, rows)
    except (SteerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted: what is shown was finished", file=sys.stderr)
        code = 130
    if rows:
        print(f"{show(rows)}\n\n{show_prices(rows, toy=options.small is None)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
