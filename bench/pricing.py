"""Prices a routing trace at the shapes of a pair that is not here. Runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.alone import Alone
from bench.prices.price_list import PriceList
from bench.prices.table import prices_notes, prices_table
from bench.table import again_notes, render
from engine.accounting.ledger import Usage
from engine.accounting.pricing import ACCOUNTINGS, pair_flops, useful_flops
from engine.config import TINY
from engine.config.pairs import Pair
from engine.errors import SteerError
from engine.replay.trace import Trace, TracedRequest

STORED = TINY / "trace.jsonl", TINY / "speculate-trace.jsonl"
_BF16 = 2  # bytes
_CARD = 80e9


@dataclass(frozen=True)
class _Traced:
    """The requests of one trace, and what they would have cost each model alone."""

    policy: str
    pair: str
    requests: tuple[TracedRequest, ...]

    @classmethod
    def read(cls, path: Path, problems: int | None) -> _Traced:
        trace = Trace.read(path)
        requests = trace.requests[:problems]
        if any(r.prompt_tokens < 1 or r.completion_tokens < 1 for r in requests):
            raise SteerError(f"{path}: a request without prompt or completion tokens")
        return cls(trace.policy, trace.pair, requests)

    @property
    def usages(self) -> list[Usage]:
        return [r.usage for r in self.requests]

    def alone(self, role: str) -> list[Usage]:
        """The same prompts and the same number of tokens, written by one model."""
        return [Usage.alone(role, r.prompt_tokens, r.completion_tokens) for r in self.requests]

    @property
    def shares(self) -> tuple[float, float]:
        """The large model's share of steps and of tokens."""
        steps = sum(r.steps for r in self.requests)
        written = sum(s.large_tokens for r in self.requests for s in r.trail)
        return sum(r.large_steps for r in self.requests) / max(1, steps), written / self.tokens

    @property
    def tokens(self) -> int:
        return sum(r.completion_tokens for r in self.requests)


class _Pricing:
    """Rows of one trace."""

    def __init__(self, pair: Pair, traced: _Traced, prices: PriceList) -> None:
        self._pair, self._traced, self._prices = pair, traced, prices
        self._large = traced.alone("large")
        self._base = self._flops(self._large)

    def _flops(self, usages: Sequence[Usage]) -> dict[str, int]:
        total = sum(usages, Usage())
        return {a: pair_flops(total, self._pair.shapes, a) for a in ACCOUNTINGS}

    def alone(self, role: str) -> dict[str, Any]:
        """One of the pair's models alone."""
        share = float(role == "large")
        return self.row(role, (share, share), self._traced.alone(role))

    def routed(self) -> dict[str, Any]:
        """The trace's policy."""
        return self.row(self._traced.policy, self._traced.shares, self._traced.usages)

    def row(self, policy: str, shares: tuple[float, float], usages: list[Usage]) -> dict[str, Any]:
        """A row of the pair."""
        prices = self._prices.fields(usages, self._large)
        return self._row(policy, shares, sum(usages, Usage()), self._flops(usages)) | prices

    def beside(self, model: Alone) -> dict[str, Any]:
        """A model that is not of the pair, alone."""
        usage = sum(self._large, Usage())
        flops = {a: useful_flops(usage, "large", model.price, a) for a in ACCOUNTINGS}
        return {
            **self._row(f"{model.name} alone", (None, None), usage, flops),
            **self._prices.fields_beside(model, self._large, self._large),
            "parameters": model.parameters,
            **_weight_fields(model),
        }

    def _row(
        self,
        policy: str,
        shares: tuple[float | None, float | None],
        usage: Usage,
        flops: dict[str, int],
    ) -> dict[str, Any]:
        traced = self._traced
        return {
            "policy": policy,
            "accuracy": None,
            "ci_low": None,
            "ci_high": None,
            "large_step_share": shares[0],
            "large_token_share": shares[1],
            "recomputed_share": usage.recomputed_share,
            **{f"flops_{a}": flops[a] / self._base[a] for a in ACCOUNTINGS},
            "seconds": None,
            "tokens_per_second": None,
            "flops_absolute": flops,
            "n": len(traced.requests),
            "tokens": traced.tokens,
            "steps": sum(r.steps for r in traced.requests),
            "pair": self._pair.name,
            "priced": True,
            "trace": f"{traced.policy} on {traced.pair}",
            "guessed": bool(usage.speculated.passes),
        }


def price_traces(
    pair: Pair,
    paths: Sequence[Path] | None,
    problems: int | None,
    beside: Sequence[Alone],
    prices: PriceList,
) -> list[dict[str, Any]]:
    """Rows for both models alone and for each trace's policy, relative to large alone.

    "Alone" means the same prompts and the same number of tokens, written by one model; a row of a
    trace is relative to that of its own requests. ``paths``: None for the stored traces.
    ``beside``: further models, with one row each after those.
    """
    all_traced = [_Traced.read(path, problems) for path in paths or STORED]
    pricings = [_Pricing(pair, traced, prices) for traced in all_traced]
    first = pricings[0]
    rows = [first.alone("small"), first.alone("large"), *(p.routed() for p in pricings)]
    return rows + [first.beside(model) for model in beside]


def _weight_fields(model: Alone) -> dict[str, Any]:
    """Fields of a model's weights, in bf16 or as published."""
    held = model.resident_bytes(_BF16)
    return {
        "weights": model.weights("bf16"),
        "weight_bytes": round(held),
        "fits_80_gb": held <= _CARD,
    }


def priced_notes(rows: list[dict[str, Any]]) -> list[str]:
    """Notes on the rows of :func:`price_traces`.

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
    guesses = [
        "What speculate would cost follows from no other policy's trace, as it depends on how "
        "often a guess is\nright: record one with --policies speculate --save-traces DIR and add "
        "--trace DIR/speculate.jsonl."
    ]
    again = again_notes(of_pair, "record the trace with a larger arena")
    return again + guesses * (not any(row["guessed"] for row in rows)) + weights


def priced_table(rows: list[dict[str, Any]]) -> str:
    """The table of :func:`price_traces`."""
    header = (
        "policy",
        "large steps",
        "large tokens",
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
                *(_share(r[f"large_{each}_share"]) for each in ("step", "token")),
                *(f"{r[f'flops_{a}']:.3f}" for a in ACCOUNTINGS),
                f"{r['flops_absolute']['catchup'] / r['n'] / 1e12:.3f}",
            )
            for r in rows
        ],
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def priced_report(pair: Pair, rows: list[dict[str, Any]]) -> str:
    """Both tables with their notes."""
    first = rows[0]
    tokens, steps = first["tokens"], max(1, first["steps"])
    traces = dict.fromkeys(f"{r['trace']} ({r['n']} requests)" for r in rows)
    return "\n".join(
        [
            f"Nothing was run and accuracy is not measured: {pair.name} is priced from traces: "
            f"{', '.join(traces)}.",
            "",
            priced_table(rows),
            "",
            prices_table(rows),
            "",
            "FLOPs relative to large alone, writing as many tokens. The trace's lengths count: it",
            f"has {tokens / first['n']:.1f} tokens a request and {tokens / steps:.1f} a step.",
            prices_notes(rows),
            *priced_notes(rows),
        ]
    )
