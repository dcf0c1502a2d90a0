"""The ``steer`` command."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from engine import conversation, engine_flags
from engine.config import EngineConfig
from engine.config.named_models import NAMED_MODELS
from engine.config.pairs import NAMED_PAIRS
from engine.errors import SteerError
from engine.files import check_output
from engine.params import SamplingParams
from engine.replay import command as replaying
from engine.request import Completion, Step
from engine.routing.calibration import Calibration
from engine.routing.names import HELP
from engine.routing.policies import AfterThinking
from engine.routing.windows import FORMS
from engine.serve import command as serving
from engine.tuning import command as calibrating


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="steer", description="A small and a large language model write one answer together."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    generate = commands.add_parser(
        "generate",
        help="answer prompts and show which model wrote each step",
        epilog="example: steer generate '47+36*7-15?\\n\\n' (\\n is read as a line end)",
    )
    generate.add_argument("prompts", nargs="+", metavar="PROMPT")
    conversation.add_flags(generate)
    engine_flags.add_flags(generate)
    _add_policy_flags(generate)
    _add_sampling_flags(generate)
    calibrating.add_parser(commands)
    replaying.add_parser(commands)
    serving.add_parser(commands)
    commands.add_parser("pairs", help="list the named pairs and their shapes")
    return parser


def _add_policy_flags(parser: argparse.ArgumentParser) -> None:
    """Which model writes each step, and the trace of the decisions."""
    add = parser.add_argument
    add("--policy", default="steer", help=f"{HELP}; WINDOW is {FORMS} (default: steer)")
    add(
        "--answer-policy",
        metavar="POLICY",
        help="policy after the text that ends thinking (default: the same as before it)",
    )
    add(
        "--max-large-share",
        type=float,
        default=1.0,
        metavar="X",
        help="hand no step over while the large model has written more than this share "
        "(default: 1)",
    )
    add(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="of this pair, for steer, steer-cost and steer-served",
    )
    add("--trace", type=Path, metavar="FILE", help="write the decision trace, JSON lines")


def _add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """How answers are sampled, and how long they may be."""
    add = parser.add_argument
    add("--max-tokens", type=int, default=128, help="per answer (default: 128)")
    add("--n", type=int, default=1, help="answers to each prompt (default: 1)")
    add(
        "--max-think-tokens",
        type=int,
        default=0,
        metavar="N",
        help="insert --think-end after N tokens if no model wrote it (default: 0, never)",
    )
    add(
        "--think-end",
        default="",
        metavar="TEXT",
        help="text that ends thinking (default: </think>, which the tiny pair never writes itself)",
    )
    add(
        "--temperature",
        type=float,
        help="0 is greedy (default: what the large checkpoint recommends, else 0)",
    )
    add("--seed", type=int, help="seed of the random draws (default: a fresh one)")


def show(completion: Completion) -> str:
    """A completion as text: one line for each step, then its row counts."""
    lines = [
        f"{_author(s):5}  {s.text.strip() or '(empty)':32}  {s.reason}" for s in completion.steps
    ]
    counts = ", ".join(
        f"{role} {completion.usage.count(role, 'sampled')} sampled"
        f" of {completion.usage.rows[i, :, 0].sum()} computed"
        for i, role in enumerate(("small", "large"))
    )
    again = completion.usage.recomputed_share
    counts += f"; {again:.1%} computed again" if again else ""
    guessed = completion.usage.speculated
    if guessed.rounds:
        counts += (
            f"; {guessed.accepted} of {guessed.compared} guesses right, "
            f"{guessed.tokens_per_pass:.1f} tokens a pass of the large model"
        )
    return "\n".join([*lines, f"-- {completion.finish_reason}; rows: {counts}"])


def _author(step: Step) -> str:
    """The model that wrote a step, or that both did."""
    if step.replaced is None:
        return step.model
    by_one = {0: "small", len(step.token_ids): "large"}
    return by_one.get(step.large_tokens, "both")


def run_generate(options: argparse.Namespace) -> int:
    """``steer generate``."""
    params = _params(options)
    talk = conversation.Conversation.of(options)
    check_output(options.trace, "--trace")
    engine = engine_flags.load(options, EngineConfig(retokenize=options.retokenize))
    if options.temperature is None:
        params = _recommended(params, engine.default_params)
    prompts = [p.replace("\\n", "\n") for p in options.prompts]
    file = options.calibration
    calibration = Calibration.load(file, engine.fingerprint) if file else None
    policy = engine.policy(options.policy, calibration)
    if options.answer_policy:
        policy = AfterThinking(policy, engine.policy(options.answer_policy, calibration))
    asked = talk.prompts(engine, prompts)
    completions = engine.generate(asked, params, policy, trace=options.trace)
    for i, completion in enumerate(completions):
        print(f"{prompts[i // options.n].strip()}\n{show(completion)}")
    failed = sum(c.finish_reason == "error" for c in completions)
    if failed:
        raise SteerError(f"{failed} answers ended in an error: a model's logits were unusable")
    return 0


def _params(options: argparse.Namespace) -> SamplingParams:
    return SamplingParams(
        max_tokens=options.max_tokens,
        temperature=options.temperature or 0.0,
        seed=options.seed,
        n=options.n,
        max_think_tokens=options.max_think_tokens,
        think_end=options.think_end,
        max_large_share=options.max_large_share,
    )


def _recommended(params: SamplingParams, defaults: SamplingParams) -> SamplingParams:
    """Parameters with the checkpoint's recommended sampling, for a run without --temperature."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    return replace(params, **{name: getattr(defaults, name) for name in names})


def run_pairs(options: argparse.Namespace) -> int:
    """``steer pairs``."""
    print("tiny: the embedded pair, weights included")
    print("custom: any two folders or GGUF files")
    for name in NAMED_PAIRS[2:]:
        small, _, large = name.partition("/")
        parts = [
            f"{m}: {NAMED_MODELS[m].layers} layers of {NAMED_MODELS[m].hidden_size}"
            for m in (small, large)
        ]
        print(f"{name}: {'; '.join(parts)}")
    return 0


_COMMANDS = {
    "generate": run_generate,
    "pairs": run_pairs,
    "calibrate": calibrating.run,
    "replay": replaying.run,
    "serve": serving.run,
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 on bad input, 130 when interrupted."""
    options = build_parser().parse_args(arguments)
    try:
        return _COMMANDS[options.command](options)
    except (SteerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
