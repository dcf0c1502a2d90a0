"""What does routing save? Accuracy, FLOPs, time and money of each policy on the same problems.

python -m bench.flops                                    the embedded pair, 500 problems
python -m bench.flops --model-pair qwen-1.5b/qwen-32b    prices a stored trace, runs nothing
python -m bench.flops --model-pair qwen-1.5b/qwen-7b --small A --large B --dataset F.jsonl
python -m bench.flops --all --report DIR                 every domain and rival, into a folder
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import alone
from bench.chosen_tests import check_lengths, chosen_tests, refuse
from bench.comparison import Comparison, named, needs_share
from bench.evaluate import drawn_rows
from bench.plot import accuracy_plot, check_plot
from bench.prices import options as prices
from bench.prices.price_list import PriceList
from bench.pricing import price_traces, priced_report
from bench.report import run as report
from bench.rows import RowWriter
from bench.tasks import arithmetic
from bench.tasks.registry import ALL, EVERY
from engine import Engine, EngineConfig, SteerError, conversation
from engine.config.pairs import NAMED_PAIRS, Pair
from engine.files import check_output
from engine.routing.names import HELP, POLICIES, is_calibrated, make_policy
from engine.routing.windows import FORMS, Window

INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.flops",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_problems(parser.add_argument_group("what is answered, and by what"))
    _add_checkpoints(parser.add_argument_group("checkpoints and their memory"))
    conversation.add_flags(parser.add_argument_group("how a prompt is written"))
    prices.add_flags(parser.add_argument_group("time and money"))
    _add_outputs(parser.add_argument_group("traces, calibrations, output"))
    report.add_flags(parser.add_argument_group("the whole report"))
    return parser


def _add_problems(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--model-pair",
        default="tiny",
        metavar="PAIR",
        help="one of: " + ", ".join(NAMED_PAIRS) + " (default: tiny, which comes with its weights)",
    )
    add("--problems", type=int, metavar="N", help="problems to use (default: 500, or all given)")
    add(
        "--policies",
        default="small,large,speculate,random,threshold,steer",
        metavar="LIST",
        help="comma-separated: " + ", ".join(POLICIES) + f"; in full {HELP}; large always "
        "runs, as the baseline; random takes its share from steer (default: %(default)s)",
    )
    add(
        "--task",
        choices=[*EVERY, ALL],
        help="of the embedded pair; all takes those that it was trained on in turn; stretches and "
        "quiet are arithmetic with hard steps in stretches, and with other cuts between steps "
        "(default: arithmetic)",
    )
    add(
        "--mix",
        choices=sorted(arithmetic.MIXES),
        help="shares of easy, medium and hard steps in the embedded task (default: mixed)",
    )
    add("--seed", type=int, help="of the embedded problems (default: 0)")
    add(
        "--style",
        choices=arithmetic.STYLES,
        help="how the steps of the embedded task are written; rigid needs a pair that was trained "
        "on it: --model-pair custom with --small and --large (default: open)",
    )
    add(
        "--window",
        default="boundary",
        help=f"what steer's calibration is fitted on: {FORMS} (default: boundary)",
    )
    add(
        "--dataset",
        metavar="FILE",
        help='problems, a JSON object {"prompt", "answer"} a line, or reasoning-gym:NAME for one '
        "of its tasks (NAME,setting=value,... sets it up); the first fifth calibrates",
    )
    add("--max-tokens", type=int, metavar="N", help="per answer, with --dataset (default: 1024)")


def _add_checkpoints(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--small", type=Path, metavar="PATH", help="the small model: a folder or a GGUF file")
    add("--large", type=Path, metavar="PATH", help="the large model, likewise")
    add("--dtype", default="float32", help="of weights and KV: float32 (default) or bfloat16")
    add(
        "--arena-tokens",
        type=int,
        default=EngineConfig.arena_tokens,
        metavar="N",
        help="KV memory in tokens of the large model (default: what the requests need, within half "
        "of the memory that is free)",
    )
    add(
        "--max-sequences",
        type=int,
        default=EngineConfig.max_sequences,
        metavar="N",
        help="answers at once; the rest waits (default: %(default)s)",
    )


def _add_outputs(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="use this calibration instead of fitting one on problems apart from the test set",
    )
    add("--save-calibration", type=Path, metavar="FILE", help="write the calibration used")
    add("--save-traces", type=Path, metavar="DIR", help="write each policy's trace, JSON lines")
    add(
        "--trace",
        type=Path,
        action="append",
        metavar="FILE",
        help="price this trace (pairs without weights); may be given several times",
    )
    add(
        "--beside",
        metavar="LIST",
        help=f"price these models alone as well (pairs without weights): {alone.HELP}",
    )
    add("--json", type=Path, metavar="FILE", help="write a result row a line")
    add("--plot", type=Path, metavar="FILE", help="write accuracy against costs as a picture")


def _check(options: argparse.Namespace) -> list[str]:
    """The policies to run, large first and random last; SteerError on a bad combination."""
    if options.problems is not None and options.problems < 1:
        raise SteerError(f"--problems must be at least 1, got {options.problems}")
    Window.parse(options.window)
    prices.PriceFlags.of(options)
    check_output(options.json, "--json")
    check_output(options.save_calibration, "--save-calibration")
    if options.plot:
        check_plot(options.plot)
    policies = named(options)
    if not policies:
        raise SteerError("--policies names no policy")
    for policy in policies:
        if not is_calibrated(policy):  # those that are need their calibration first
            make_policy(policy)
    if any(map(needs_share, policies)) and "steer" not in policies:
        raise SteerError("policy random takes its share from steer: add steer, or use random:SHARE")
    rest = [p for p in dict.fromkeys(policies) if p != "large" and not needs_share(p)]
    fitted = [p for p in rest if is_calibrated(p)]
    tail = [p for p in dict.fromkeys(policies) if needs_share(p)]
    return ["large", *(p for p in rest if p not in fitted), *fitted, *tail]


def run_pair(options: argparse.Namespace, pair: Pair) -> int:
    """Run the policies on a pair whose weights are here."""
    order = _check(options)
    calibration, tests = chosen_tests(options)
    # No prefix cache, so that no policy reuses what another one has computed.
    config = EngineConfig(
        prefix_cache=False,
        arena_tokens=options.arena_tokens,
        max_sequences=options.max_sequences,
        delimiters=tests.delimiters,
        max_drawn_rows=drawn_rows(order, options.max_sequences),
    )
    engine = Engine(pair, config=config, dtype=options.dtype)
    if options.dataset:
        check_lengths(engine, calibration)
        check_lengths(engine, tests)
    if options.save_traces:
        options.save_traces.mkdir(parents=True, exist_ok=True)
    code = 0
    with RowWriter(options.json) as rows:
        run = Comparison(options, engine, rows)
        try:
            for name in order:
                if is_calibrated(name) and run.calibration is None:
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
    needy = (
        "dataset",
        "calibration",
        "save_calibration",
        "save_traces",
        "plot",
        "task",
        "mix",
        "seed",
        "style",
        "priced_as",
    )
    refuse(options, needy, "needs weights: pass --small PATH and --large PATH")
    _check(options)
    flags = prices.PriceFlags.of(options)
    beside = alone.read_names(options.beside)
    rows = price_traces(
        pair, options.trace, options.problems, beside, PriceList.of(flags, pair.shapes)
    )
    print(priced_report(pair, rows))
    with RowWriter(options.json) as writer:
        for row in rows:
            writer.write(row)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, 2 on bad input, 130 when interrupted."""
    options = build_parser().parse_args(arguments)
    try:
        if not options.dataset:
            refuse(options, ("chat", "system", "instruction"), "goes with --dataset")
        if options.all or options.report:
            return report.write_report(options)
        pair = Pair.named(options.model_pair, options.small, options.large)
        if pair.small is None:
            return price_pair(options, pair)
        for name in ("trace", "beside"):
            if getattr(options, name) is not None:
                raise SteerError(f"--{name} prices a pair without weights; this pair can be run")
        if pair.name != "tiny" and not options.dataset and not options.style:
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
