"""Which signal finds the small model's wrong steps? All of them, against labels without people.

    python -m bench.signals                                      the embedded pair
    python -m bench.signals --small A --large B --dtype bfloat16 --problems 40
                                                                 another pair, on word problems

The small model answers greedily. From before each of its steps, and from after it, the large model
alone goes on to the end: the step is wrong if the first text ends right by the task's checker, and
the second does not. Where the first does not end right, the step cannot be judged and is left out.

Each score of a step is compared with these labels: the six signals over every window (mean or least
sure token), raw logits over all tokens of the step and over those of mathematics, and what the
large model thinks when it reads the step. AUROC is the chance that a wrong step scores lower than a
right one: 0.5 says nothing. Its interval is a bootstrap over problems.

"Caught" is the share of the wrong steps among the share of judged steps with the lowest scores.
"Accuracy" is what handing over is worth: the large model takes over for good at the first step
whose score is at most a mark, and writes this share of the small model's steps. It is exact, not an
estimate: the continuations are these answers. Policies that hand back after a step are not valued.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.evaluate import TestSet, task_tests
from bench.plot import check_plot
from bench.real_pair import problems as word_problems
from bench.rows import RowWriter
from bench.step_signals.answers import observe_answers
from bench.step_signals.continuations import Outcomes, continue_answers
from bench.step_signals.picture import areas_plot
from bench.step_signals.rows import Labelled, score_table, setting_lines
from bench.step_signals.scores import maths_mask
from bench.tasks.problem import STYLES
from bench.tasks.registry import EVERY
from engine import Engine, EngineConfig, SamplingParams, SteerError
from engine._core import MOST_DRAFTS
from engine.files import check_output

INTERRUPTED = 130
_CONTEXT = 2048  # tokens of a word problem with its answer, at most


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.signals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--small", type=Path, metavar="PATH", help="this small model instead of the embedded one")
    add("--large", type=Path, metavar="PATH", help="this large model; goes with --small")
    add("--dtype", default="float32", help="of weights and KV: float32 (default) or bfloat16")
    add(
        "--task",
        choices=EVERY,
        help="an embedded task (default: arithmetic; with --small and no --style: word problems)",
    )
    add("--mix", help="of the embedded task: light, mixed (default) or hard")
    add(
        "--style",
        choices=STYLES,
        help="how the steps of the embedded task are written (default: open); rigid needs a pair "
        "that was trained on it",
    )
    add("--seed", type=int, help="of the embedded problems (default: 0)")
    add("--problems", type=int, default=300, metavar="N", help="to answer (default: %(default)s)")
    add("--max-tokens", type=int, metavar="N", help="per answer (default: the task's)")
    add(
        "--at-once",
        type=int,
        default=64,
        metavar="N",
        help="answers and continuations at once (default: %(default)s)",
    )
    add("--json", type=Path, metavar="FILE", help="write a result row a line")
    add("--plot", type=Path, metavar="FILE", help="write the AUROCs with intervals as a picture")
    return parser


def _check(options: argparse.Namespace) -> None:
    for name in ("problems", "at_once"):
        if getattr(options, name) < 1:
            flag = name.replace("_", "-")
            raise SteerError(f"--{flag} must be at least 1, got {getattr(options, name)}")
    if (options.small is None) != (options.large is None):
        raise SteerError("--small and --large go together: pass both, or neither")
    if _words(options) and not (options.mix is None and options.seed is None):
        raise SteerError("--mix and --seed draw embedded problems: they go with --task")
    mixes = EVERY[_task(options)].mixes
    if _mix(options) not in mixes:
        raise SteerError(f"--mix must be one of {', '.join(mixes)}, got {options.mix!r}")
    check_output(options.json, "--json")
    if options.plot:
        check_plot(options.plot)


def _task(options: argparse.Namespace) -> str:
    return str(options.task or "arithmetic")


def _mix(options: argparse.Namespace) -> str:
    return str(options.mix or "mixed")


def _words(options: argparse.Namespace) -> bool:
    """Whether the problems are word problems."""
    return bool(options.small) and not options.task and not options.style


def _tests(options: argparse.Namespace) -> TestSet:
    if _words(options):
        return word_problems.as_chat(word_problems.draw(options.problems, 0)[0])
    style = options.style or "open"
    return task_tests(
        "test", options.problems, options.seed or 0, _mix(options), style, _task(options)
    )


def _engine(options: argparse.Namespace, tests: TestSet) -> Engine:
    config = EngineConfig(
        max_sequences=options.at_once,
        max_waiting=0,
        max_drawn_rows=options.at_once * (MOST_DRAFTS + 1),
        max_context=_CONTEXT if _words(options) else 0,
        delimiters=tests.delimiters,
    )
    pair = "custom" if options.small else "tiny"
    return Engine(
        pair, small=options.small, large=options.large, config=config, dtype=options.dtype
    )


def run(options: argparse.Namespace) -> tuple[list[dict[str, Any]], bool]:
    """Label and score: the rows, which are written, too, and whether all answers are in them.

    After an interrupt the rows are of the answers that were finished.
    """
    _check(options)
    tests = _tests(options)
    limit = tests.max_tokens if options.max_tokens is None else options.max_tokens
    params = SamplingParams(max_tokens=limit)
    engine, shown = _engine(options, tests), sys.stderr.isatty()
    started = time.perf_counter()
    answers = observe_answers(engine, tests, params, shown)
    answered = time.perf_counter()
    outcomes = [Outcomes() for _ in answers]
    with suppress(KeyboardInterrupt):
        continue_answers(engine, tests, answers, outcomes, params, shown)
    seconds = {"answers": answered - started, "continuations": time.perf_counter() - answered}
    done = [i for i, each in enumerate(outcomes) if each.whole(answers[i])]
    if not done:
        raise KeyboardInterrupt
    known = [answers[i] for i in done], [outcomes[i] for i in done]
    labelled = Labelled(*known, maths_mask(engine))
    rows = [labelled.setting() | {"seconds": seconds}, *labelled.rows()]
    _write(options, engine, rows)
    return rows, len(done) == len(answers)


def _write(options: argparse.Namespace, engine: Engine, rows: list[dict[str, Any]]) -> None:
    """The files that are asked for."""
    task = "word problems" if _words(options) else f"{_task(options)}-{options.style or 'open'}"
    common = {
        "bench": "signals",
        "pair": engine.fingerprint,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "task": task,
        **({} if _words(options) else {"mix": _mix(options), "seed": options.seed or 0}),
    }
    with RowWriter(options.json) as writer:
        for row in rows:
            writer.write(common | row)
    if options.plot:
        areas_plot(rows, options.plot, f"{task}, {rows[0]['n']} problems")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 on bad input, 130 when interrupted."""
    options = build_parser().parse_args(arguments)
    try:
        rows, whole = run(options)
    except (SteerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    print(setting_lines(rows[0]))
    if 0 < rows[0]["wrong"] < rows[0]["judged"]:
        print(f"\n{score_table(rows)}")
    else:
        print("no AUROC: the steps that can be judged are all right, all wrong, or none")
    if not whole:
        print("interrupted: what is shown is of the answers that were finished", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
