"""``steer calibrate``."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine import conversation
from engine.config import EngineConfig
from engine.config.pairs import NAMED_PAIRS
from engine.engine import Engine
from engine.errors import SteerError
from engine.files import check_output
from engine.params import SamplingParams
from engine.routing.calibration import Calibration
from engine.routing.signals import check_signal
from engine.routing.windows import FORMS as WINDOWS
from engine.routing.windows import Window
from engine.tuning import target as targets
from engine.tuning.agreement import read_steps, tau_for_agreement
from engine.tuning.chance import chance_lines, remedy
from engine.tuning.fitting import fitted
from engine.tuning.marks import check_mark_target, choose_mark
from engine.tuning.pictures import can_draw, histogram, reliability_plot
from engine.tuning.prompts import IsRight, Prompts, read_prompts
from engine.tuning.samples import Sample, observe
from engine.tuning.separability import (
    SIGNALS,
    Finding,
    judge_windows,
    recommend,
    warnings,
    windows_for,
)
from engine.tuning.step_mixtures import with_step_mixtures
from engine.tuning.target import Bench, Target, choose_tau, ladder

MOST_TOKENS = 1024  # default length limit of an answer


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``calibrate`` and its flags."""
    parser = commands.add_parser(
        "calibrate",
        help="fit a calibration to a pair on your prompts, and say what it is worth",
        description="Runs the small model on the prompts, says which signal over which window "
        "predicts its doubts, fits the mixture, and picks tau. With answers it also says whether "
        "that signal is better than chance at telling wrong answers from right ones.",
        epilog="example: steer calibrate prompts.jsonl --target loss:0.01 --output mine.json",
    )
    _add_run_flags(parser)
    _add_fit_flags(parser)
    parser.add_argument(
        "--retokenize",
        action="store_true",
        help="take a pair whose tokenizers differ, as steer generate does; not for agreement, "
        "whose large model reads the small one's own tokens",
    )


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    """The pair, the prompts and how they are answered."""
    add = parser.add_argument
    add("prompts", type=Path, metavar="FILE", help='{"prompt": ...} a line; "answer" is optional')
    add("--pair", default="tiny", help="one of: " + ", ".join(NAMED_PAIRS) + " (default: tiny)")
    add("--small", type=Path, metavar="PATH", help="the small model: a folder or a GGUF file")
    add("--large", type=Path, metavar="PATH", help="the large model, likewise")
    add("--dtype", default="float32", help="of weights and KV: float32 (default) or bfloat16")
    add(
        "--max-tokens",
        type=int,
        metavar="N",
        help=f"per answer (default: {MOST_TOKENS}, or what the context leaves)",
    )
    conversation.add_flags(parser)
    add("--limit", type=int, metavar="N", help="use the first N prompts")
    add(
        "--delimiter",
        action="append",
        metavar="TEXT",
        help="what ends a step, \\n is read as a line end; can be repeated (default: \\n\\n)",
    )


def _add_fit_flags(parser: argparse.ArgumentParser) -> None:
    """What is fitted, what tau is for, and where the results go."""
    add = parser.add_argument
    add("--signal", help=f"one of {', '.join(SIGNALS)} (default: the best)")
    add("--window", help=f"one of {WINDOWS} (default: the best)")
    add(
        "--target",
        help=f"what tau is for: {targets.FORMS}; accuracy is that of the answers, or agreement "
        "with the large model without answers (default: the Bayes split, without a run of the "
        "large model)",
    )
    add(
        "--mark",
        action="store_true",
        help="choose the mark of the policy verify for the target instead: fits and writes "
        "nothing; a share is that of the tokens",
    )
    add(
        "--step-mixtures",
        action="store_true",
        help="fit what the policy steer-served needs as well: one more run, of both models",
    )
    add("--output", type=Path, default=Path("calibration.json"), metavar="FILE")
    add("--no-plots", action="store_true", help="write no pictures beside the output")


def run(options: argparse.Namespace) -> int:
    """Fit, choose tau and print the result; files are written at the end, after all checks."""
    aim = Target.parse(options.target) if options.target else None
    _check_combination(options, aim)
    _check(options)
    talk = conversation.Conversation.of(options)
    prompts = _limited(read_prompts(options.prompts), options.limit)
    engine = _engine(options)
    asked = talk.prompts(engine, prompts.texts)
    params = SamplingParams(max_tokens=_tokens(options.max_tokens, engine, asked))
    if options.mark and aim:
        print(choose_mark(aim, Bench(engine, asked, params, prompts.is_right)).text)
        return 0
    samples = observe(engine, asked, params, progress=sys.stderr.isatty())
    chosen, findings = _choose(options, samples)
    calibration = fitted(engine, samples, chosen, prompts.texts)
    right = _right(samples, prompts.is_right)
    if aim and aim.kind == "agreement":
        read = read_steps(engine, asked, params, Window.parse(calibration.window))
        taus = ladder(calibration, samples)
        calibration = tau_for_agreement(calibration, read, taus, aim.value)
    elif aim:
        bench = Bench(engine, asked, params, prompts.is_right)
        calibration = choose_tau(calibration, samples, aim, bench)
        right = _right(samples, bench.is_right)
    if options.step_mixtures:
        calibration = with_step_mixtures(calibration, engine, asked, params)
    print(_table(findings, chosen))
    for line in warnings(findings):
        print(f"warning: {line}")
    print(_verdict(calibration, chosen))
    for line in chance_lines(samples, right, chosen, findings, options.retokenize):
        print(line)
    _write(options, calibration, samples, right)
    return 0


def _check_combination(options: argparse.Namespace, aim: Target | None) -> None:
    """SteerError for flags that do not go together."""
    if options.retokenize and aim and aim.kind == "agreement":
        raise SteerError(
            "--target agreement cannot go with --retokenize: the large model would have to read "
            "the small one's own tokens; aim at accuracy, loss, share or flops"
        )
    if options.mark:
        check_mark_target(aim)
        for name in ("step_mixtures", "signal", "window", "no_plots"):
            if getattr(options, name):
                flag = f"--{name.replace('_', '-')}"
                raise SteerError(f"{flag} is about a calibration, --mark fits none: drop one")
        if options.retokenize:
            raise SteerError(
                "--mark cannot go with --retokenize: no verification across tokenizers"
            )
    if options.retokenize and options.step_mixtures:
        raise SteerError(
            "--step-mixtures cannot go with --retokenize: the signals of the large model's own "
            "tokens are kept for models with the same tokens only"
        )


def _engine(options: argparse.Namespace) -> Engine:
    config = EngineConfig(prefix_cache=False, retokenize=options.retokenize)
    if options.delimiter:
        delimiters = tuple(d.replace("\\n", "\n") for d in options.delimiter)
        config = replace(config, delimiters=delimiters)
    return Engine(
        options.pair, small=options.small, large=options.large, dtype=options.dtype, config=config
    )


def _check(options: argparse.Namespace) -> None:
    if options.limit is not None and options.limit < 1:
        raise SteerError(f"--limit must be at least 1, got {options.limit}")
    if options.signal:
        check_signal(options.signal)
    if options.window and Window.parse(options.window).kind == "answer":
        raise SteerError("--window answer: a calibration is about steps; a cascade needs none")
    for path in (options.output, *_pictures(options.output)):
        check_output(path, "--output")


def _tokens(wanted: int | None, engine: Engine, prompts: Sequence[conversation.Asked]) -> int:
    """Tokens of an answer: ``wanted``, else as many as fit after the longest prompt."""
    if wanted is not None:
        return wanted
    longest = max(conversation.length(engine, prompt) for prompt in prompts)
    return max(1, min(MOST_TOKENS, engine.max_context - longest))


def _limited(prompts: Prompts, limit: int | None) -> Prompts:
    return Prompts(prompts.texts[:limit], prompts.answers and prompts.answers[:limit])


def _right(samples: Sequence[Sample], is_right: IsRight | None) -> list[bool] | None:
    return is_right and [is_right(i, sample.text) for i, sample in enumerate(samples)]


def _choose(
    options: argparse.Namespace, samples: Sequence[Sample]
) -> tuple[Finding, list[Finding]]:
    """The finding to fit on, and all findings."""
    windows = [Window.parse(options.window)] if options.window else windows_for(samples)
    signals = (options.signal,) if options.signal else SIGNALS
    findings = judge_windows(samples, windows, signals)
    chosen = recommend(findings)
    if chosen:
        return chosen, findings
    forced = [f for f in findings if f.mixture]
    if options.signal and options.window and forced:
        print(f"warning: {forced[0].signal} over {forced[0].window} {forced[0].verdict}")
        return forced[0], findings
    print(_table(findings, None))
    common = Counter(f.verdict for f in findings).most_common(2)
    raise SteerError(
        "nothing is worth calibrating on, no file was written: "
        + "; ".join(f"{reason} ({count} of {len(findings)})" for reason, count in common)
        + f"; {remedy(options.retokenize)}"
    )


def _table(findings: Sequence[Finding], chosen: Finding | None) -> str:
    """One line for each signal and window; the chosen one is marked."""
    header = f"  {'window':15}{'signal':11}{'n':>6}{'apart':>7}{'AUROC':>7}{'unsure':>8}"
    lines = [header + f"{'doubt there':>13}{'elsewhere':>11}  verdict"]
    for f in sorted(findings, key=lambda f: (f.price, f.window)):
        unsure = f"{f.mixture.weights[0]:.1%}" if f.mixture else "-"
        mark = "*" if f is chosen else " "
        lines.append(
            f"{mark} {f.window:15}{f.signal:11}{f.count:6}{f.separation:7.2f}{f.area:7.3f}"
            f"{unsure:>8}{f.errors[0]:13.3f}{f.errors[1]:11.4f}  {f.verdict}"
        )
    return "\n".join(lines)


def _verdict(calibration: Calibration, chosen: Finding) -> str:
    lines = [
        f"recommended: {chosen.signal} over {chosen.window} (AUROC {chosen.area:.3f} for the small "
        f"model's own doubt); tau {calibration.tau:.4g}"
    ]
    origin = calibration.provenance
    if "agreement" in origin:
        last = origin["agreement"][-1]
        met = "met" if origin["aim_reached"] else "NOT met by any tau"
        lines.append(
            f"target {origin['aim']}: {met}; {last['agreement']:.3f} of {last['kept']} kept steps"
        )
    elif "aim" in origin:
        at = next(row for row in origin["grid"] if row["tau"] == calibration.tau)
        met = "met" if origin["aim_reached"] else "NOT met by any tau"
        lines.append(
            f"target {origin['aim']}: {met}; accuracy {at['accuracy']:.3f} (large alone "
            f"{origin['large_alone']['accuracy']:.3f}), {at['large']:.1%} of steps by the large "
            f"model, FLOPs {at['flops_decode']:.3f} decode-only, {at['flops_catchup']:.3f} with "
            "catch-up"
        )
        lines.append("tau was picked on the prompts of the fit: measure it on others")
    return "\n".join(lines)


def _pictures(output: Path) -> tuple[Path, Path]:
    stem = output.with_suffix("")
    return Path(f"{stem}-histogram.png"), Path(f"{stem}-reliability.png")


def _write(
    options: argparse.Namespace,
    calibration: Calibration,
    samples: Sequence[Sample],
    right: Sequence[bool] | None,
) -> None:
    written = []
    if not options.no_plots and can_draw():
        first, second = _pictures(options.output)
        histogram(calibration, samples, first)
        reliability_plot(calibration, samples, right, second)
        written = [first, second]
    elif not options.no_plots:
        print("no pictures: pip install steer-engine[plot]")
    calibration.save(options.output)
    print("written: " + ", ".join(map(os.fspath, [options.output, *written])))
