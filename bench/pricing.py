"""Prices a routing trace at the shapes of a pair that is not here. Runs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.table import render
from engine.config import TINY, Pair
from engine.errors import SteerError
from engine.ledger import Usage
from engine.pricing import ACCOUNTINGS, pair_flops
from engine.trace import Trace

STORED = TINY / "trace.jsonl"


def price_trace(pair: Pair, path: Path | None, problems: int | None) -> list[dict[str, Any]]:
    """Rows for both models alone and for the trace's policy, FLOPs relative to large alone.

    "Alone" means the same prompts and the same number of tokens, written by one model.
    """
    trace = Trace.read(path or STORED)
    requests = trace.requests[:problems]
    shapes = pair.shapes
    lengths = [(r.prompt_tokens, r.completion_tokens) for r in requests]
    if any(p < 1 or c < 1 for p, c in lengths):
        raise SteerError(f"{path or STORED}: a request without prompt or completion tokens")
    steps = sum(r.steps for r in requests)
    usages = {
        "small": (Usage.alone_sum("small", lengths), 0.0),
        "large": (Usage.alone_sum("large", lengths), 1.0),
        trace.policy: (
            sum((r.usage for r in requests), Usage()),
            sum(r.large_steps for r in requests) / max(1, steps),
        ),
    }
    base = {a: pair_flops(usages["large"][0], shapes, a) for a in ACCOUNTINGS}
    rows = []
    for policy, (usage, share) in usages.items():
        flops = {a: pair_flops(usage, shapes, a) for a in ACCOUNTINGS}
        rows.append(
            {
                "policy": policy,
                "n": len(requests),
                "accuracy": None,
                "ci_low": None,
                "ci_high": None,
                "large_step_share": share,
                "recomputed_share": usage.recomputed_share,
                **{f"flops_{a}": flops[a] / base[a] for a in ACCOUNTINGS},
                "seconds": None,
                "tokens_per_second": None,
                "tokens": sum(c for _, c in lengths),
                "steps": steps,
                "flops_absolute": flops,
                "pair": pair.name,
                "priced": True,
                "trace": f"{trace.policy} on {trace.pair}",
            }
        )
    return rows


def priced_table(rows: list[dict[str, Any]]) -> str:
    """The table of :func:`price_trace`."""
    header = (
        "policy", "large steps", "FLOPs decode", "with catch-up", "re-prefill",
        "TFLOP a problem, with catch-up",
    )  # fmt: skip
    return render(
        header,
        [
            (
                r["policy"],
                f"{r['large_step_share']:.1%}",
                *(f"{r[f'flops_{a}']:.3f}" for a in ACCOUNTINGS),
                f"{r['flops_absolute']['catchup'] / r['n'] / 1e12:.3f}",
            )
            for r in rows
        ],
    )
