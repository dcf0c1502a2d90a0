"""Prices a routing trace at the shapes of a pair that is not here. Runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.alone import Alone
from bench.table import again_notes, render
from engine.accounting.ledger import Usage
from engine.accounting.pricing import ACCOUNTINGS, pair_flops, useful_flops
from engine.config import ROLES, TINY
from engine.config.pairs import Pair
from engine.errors import SteerError
from engine.replay.trace import Trace

STORED = TINY / "trace.jsonl"
_BF16 = 2  # bytes
_CARD = 80e9


def price_trace(
    pair: Pair, path: Path | None, problems: int | None, beside: Sequence[Alone] = ()
) -> list[dict[str, Any]]:
    """Rows for both models alone and for the trace's policy, FLOPs relative to large alone.

    "Alone" means the same prompts and the same number of tokens, written by one model. ``beside``:
    further models, with one row each after those.
    """
    trace = Trace.read(path or STORED)
    requests = trace.requests[:problems]
    lengths = [(r.prompt_tokens, r.completion_tokens) for r in requests]
    if any(p < 1 or c < 1 for p, c in lengths):
        raise SteerError(f"{path or STORED}: a request without prompt or completion tokens")
    steps = sum(r.steps for r in requests)
    alone = {role: Usage.alone_sum(role, lengths) for role in ROLES}
    routed = sum((r.usage for r in requests), Usage())
    share = sum(r.large_steps for r in requests) / max(1, steps)

    def of_pair(usage: Usage) -> dict[str, int]:
        return {a: pair_flops(usage, pair.shapes, a) for a in ACCOUNTINGS}

    base = of_pair(alone["large"])
    common = {
        "n": len(requests),
        "tokens": sum(c for _, c in lengths),
        "steps": steps,
        "pair": pair.name,
        "priced": True,
        "trace": f"{trace.policy} on {trace.pair}",
    }
    rows = [
        _row("small", 0.0, alone["small"], of_pair(alone["small"]), base, common),
        _row("large", 1.0, alone["large"], base, base, common),
        _row(trace.policy, share, routed, of_pair(routed), base, common),
    ]
    for model in beside:
        flops = {a: useful_flops(alone["large"], "large", model.price, a) for a in ACCOUNTINGS}
        row = _row(f"{model.name} alone", None, alone["large"], flops, base, common)
        rows.append(row | {"parameters": model.parameters, **_weight_fields(model)})
    return rows


def _row(
    policy: str,
    share: float | None,
    usage: Usage,
    flops: dict[str, int],
    base: dict[str, int],
    common: dict[str, Any],
) -> dict[str, Any]:
    return {
        "policy": policy,
        "accuracy": None,
        "ci_low": None,
        "ci_high": None,
        "large_step_share": share,
        "recomputed_share": usage.recomputed_share,
        **{f"flops_{a}": flops[a] / base[a] for a in ACCOUNTINGS},
        "seconds": None,
        "tokens_per_second": None,
        "flops_absolute": flops,
        **common,
    }


def _weight_fields(model: Alone) -> dict[str, Any]:
    """Fields of a model's weights, in bf16 or as published."""
    held = model.resident_bytes(_BF16)
    return {
        "weights": model.weights("bf16"),
        "weight_bytes": round(held),
        "fits_80_gb": held <= _CARD,
    }


def priced_notes(rows: list[dict[str, Any]]) -> list[str]:
    """Notes on the rows of :func:`price_trace`.

    A line for each policy of the pair that computed much again, and one on the weights of each
    further model.
    """
    of_pair = [row for row in rows if "parameters" not in row]
    weights = [
        f"{row['policy']}: {row['parameters'] / 1e9:.1f} billion parameters, "
        f"{row['weight_bytes'] / 1e9:.1f} GB of weights ({row['weights']}), "
        f"{'less' if row['fits_80_gb'] else 'more'} than a card of 80 GB holds"
        for row in rows
        if "parameters" in row
    ]
    return again_notes(of_pair, "record the trace with a larger arena") + weights


def priced_table(rows: list[dict[str, Any]]) -> str:
    """The table of :func:`price_trace`."""
    header = (
        "policy",
        "large steps",
        "FLOPs decode",
        "with catch-up",
        "re-prefill",
        "TFLOP a problem, with catch-up",
    )
    return render(
        header,
        [
            (
                r["policy"],
                "-" if r["large_step_share"] is None else f"{r['large_step_share']:.1%}",
                *(f"{r[f'flops_{a}']:.3f}" for a in ACCOUNTINGS),
                f"{r['flops_absolute']['catchup'] / r['n'] / 1e12:.3f}",
            )
            for r in rows
        ],
    )
