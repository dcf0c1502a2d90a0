"""``steer replay``."""

from __future__ import annotations

import argparse
from pathlib import Path

from engine._core import LARGE, SMALL
from engine.accounting.ledger import Usage
from engine.accounting.pricing import ACCOUNTINGS, Price, pair_flops
from engine.config import TINY, ModelConfig
from engine.config.pairs import NAMED_PAIRS, Pair
from engine.errors import SteerError
from engine.models.checkpoint import load_config
from engine.replay.replay import LIMITS, Replayed, replay
from engine.replay.trace import Trace
from engine.routing.calibration import Calibration
from engine.routing.names import HELP, is_calibrated, make_policy

NEVER = "Decisions and their costs are replayed, accuracy never: no model runs."

Shapes = tuple[ModelConfig, ModelConfig]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``replay`` and its flags."""
    parser = commands.add_parser(
        "replay",
        help="say what other policies would have decided on a trace, without a model",
        description=f"Asks other policies at the boundaries of a recorded run. {NEVER} To see a "
        "policy's accuracy, run it.",
        epilog="example: steer replay trace.jsonl --policy steer:0.9 --policy entropy:0.5",
    )
    add = parser.add_argument
    add("trace", type=Path, metavar="TRACE", help="what generate --trace or bench.flops wrote")
    add("--policy", action="append", metavar="POLICY", required=True, help=f"{HELP}; repeatable")
    add("--calibration", type=Path, metavar="FILE", help="of the trace's pair")
    add(
        "--pair",
        default="tiny",
        help="pair that prices the rows; one of: " + ", ".join(NAMED_PAIRS) + " (default: tiny)",
    )
    add("--small", type=Path, metavar="PATH", help="the small model: a folder or a GGUF file")
    add("--large", type=Path, metavar="PATH", help="the large model, likewise")


def run(options: argparse.Namespace) -> int:
    """Ask the policies at the trace's boundaries and print a table of their costs."""
    trace = Trace.read(options.trace)
    pair = Pair.named(options.pair, options.small, options.large)
    shapes = pair.shapes if pair.small is None else _shapes(pair)
    price = Price.of(shapes[SMALL]).row / Price.of(shapes[LARGE]).row
    calibration = _calibration(options, trace)
    replayed = [replay(trace, make_policy("small"), "small"), replay(trace, make_policy("large"))]
    for name in dict.fromkeys(options.policy):
        replayed.append(replay(trace, make_policy(name, calibration, price=price), name))
    print(f"{len(trace.requests)} requests of policy {trace.policy} on {trace.pair}")
    print(f"{NEVER}\n")
    print(_table(trace, replayed, shapes))
    print(f"\n{LIMITS}")
    return 0


def _shapes(pair: Pair) -> Shapes:
    assert pair.small and pair.large
    return load_config(pair.small), load_config(pair.large)


def _calibration(options: argparse.Namespace, trace: Trace) -> Calibration | None:
    """The user's calibration, else the embedded one if the trace is of the embedded pair."""
    if options.calibration:
        return Calibration.load(options.calibration, trace.pair)
    if not any(map(is_calibrated, options.policy)):
        return None
    if not trace.pair.startswith("tiny-"):
        raise SteerError(f"the trace is of {trace.pair}: pass its --calibration FILE")
    return Calibration.load(TINY / "calibration.json", trace.pair)


def _table(trace: Trace, replayed: list[Replayed], shapes: Shapes) -> str:
    lengths = [(r.prompt_tokens, r.completion_tokens) for r in trace.requests]
    alone = Usage.alone_sum("large", lengths)
    base = {a: pair_flops(alone, shapes, a) for a in ACCOUNTINGS}
    recorded = Replayed(
        f"recorded: {trace.policy}",
        sum((r.usage for r in trace.requests), Usage()),
        sum(r.steps for r in trace.requests),
        sum(r.large_steps for r in trace.requests),
        requests=len(trace.requests),
        same=len(trace.requests),
    )
    width = max(len(f.policy) for f in [recorded, *replayed])
    header = ("large steps", "decode", "with catch-up", "re-prefill", "changed", "exact requests")
    lines = [f"{'policy':{width}}" + "".join(f"  {h:>14}" for h in header)]
    for f in [recorded, *replayed]:
        flops = [f"{pair_flops(f.usage, shapes, a) / base[a]:.3f}" for a in ACCOUNTINGS]
        cells = [f"{f.large_step_share:.1%}", *flops, str(f.changed), f"{f.same}/{f.requests}"]
        lines.append(f"{f.policy:{width}}" + "".join(f"  {cell:>14}" for cell in cells))
    return "\n".join(lines)
