"""The tables of the report, in Markdown, made from its rows alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.prices.fields import MONEY, time_field
from bench.report.point import counted

Row = dict[str, Any]


def of(rows: Iterable[Row], kind: str, **wanted: Any) -> list[Row]:
    """Rows of a kind with these fields."""
    return [r for r in rows if r["kind"] == kind and all(r[k] == v for k, v in wanted.items())]


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def name_of(row: Row) -> str:
    """A setting's name, with a mark where the calibration problems chose it."""
    value = "" if row["parameter"] is None else f":{row['parameter']:.4g}"
    return f"`{row['policy']}{value}`" + (" (chosen)" if row["chosen"] else "")


def settings_table(rows: Iterable[Row], domain: str) -> str:
    """Every setting of every policy."""
    selected = of(rows, "setting", domain=domain)
    loads = {f"time at {load}": time_field(load) for load in selected[0]["prices"]["loads"]}
    header = (
        "policy",
        "accuracy (95% interval)",
        "large steps",
        "large tokens",
        "decode",
        "with catch-up",
        "re-prefill",
        *loads,
        "money",
        "stateless",
        "seconds",
    )
    return markdown(
        header,
        [
            (
                name_of(r),
                f"{r['accuracy']:.3f} ({r['ci_low']:.3f} - {r['ci_high']:.3f})",
                f"{r['large_step_share']:.1%}",
                f"{r['large_token_share']:.1%}",
                *(f"{r[f'flops_{a}']:.3f}" for a in ("decode", "catchup", "reprefill")),
                *(f"{r[name]:.3f}" for name in (*loads.values(), *MONEY.values())),
                "composed" if r["composed"] else f"{r['seconds']:.1f}",
            )
            for r in selected
        ],
    )


def signals_table(rows: Iterable[Row], domain: str) -> str:
    """Areas under the ROC curve, a line a window, a column a signal: with and without labels."""
    selected = of(rows, "signal", domain=domain)
    signals = list(dict.fromkeys(r["signal"] for r in selected))
    cells = {(r["window"], r["signal"]): r for r in selected}

    def cell(window: str, signal: str) -> str:
        row = cells[window, signal]
        areas = [row["auroc"], row["auroc_unlabelled"]]
        text = " / ".join("-" if a is None else f"{a:.3f}" for a in areas)
        return f"**{text}**" if row["chosen"] else text

    windows = dict.fromkeys(r["window"] for r in selected)
    return markdown(
        ("window", *signals), [(f"`{w}`", *(cell(w, s) for s in signals)) for w in windows]
    )


def audit_table(rows: Iterable[Row], domain: str) -> str:
    """How well the large model's likelihoods separate wrong steps from right ones."""
    return markdown(
        ("score", "AUROC", "mark that catches 95% of wrong steps", "right steps it takes back"),
        [
            (
                f"`{r['score']}`",
                "-" if r["auroc"] is None else f"{r['auroc']:.4f}",
                "-" if r["mark"] is None else f"{r['mark']:.2f}",
                "-" if r["false_rollbacks"] is None else f"{r['false_rollbacks']:.2%}",
            )
            for r in of(rows, "audit", domain=domain)
        ],
    )


def rollback_table(rows: Iterable[Row], domain: str) -> str:
    """Rollbacks of each setting."""
    return markdown(
        ("policy", "rollbacks", "of steps that were right", "tokens dropped for each written"),
        [
            (
                name_of(r),
                str(r["rollbacks"]),
                f"{r['false_rollbacks'] / r['rollbacks']:.1%}",
                f"{r['dropped_tokens'] / r['tokens']:.3f}",
            )
            for r in of(rows, "setting", domain=domain)
            if r.get("rollbacks")
        ],
    )


def paired_table(rows: Sequence[Row], domain: str) -> str:
    """STEER at its tau against others."""
    words = costs(rows, domain)
    return markdown(
        ("STEER minus", "points (95% interval)", *words.values()),
        [
            (
                f"`{r['second']}`",
                points(r),
                *(f"{r[name if name in r else f'flops_{name}']:.3f} times" for name in words),
            )
            for r in of(rows, "paired", domain=domain)
        ],
    )


def costs(rows: Iterable[Row], domain: str) -> dict[str, str]:
    """The costs of frontiers, as rows name them, with words for them."""
    return counted(of(rows, "setting", domain=domain)[0]["prices"])


def points(row: Row) -> str:
    """A difference of accuracies in points, with its interval."""
    value, low, high = (100 * row[k] for k in ("difference", "low", "high"))
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def frontier_table(rows: Iterable[Row], domain: str, accounting: str, first: str) -> str:
    """One of our policies against each family, at equal cost and at equal accuracy."""
    selected = of(rows, "frontier", domain=domain, accounting=accounting, first=first)
    places = list(dict.fromkeys((r["equal"], r["at"]) for r in selected))
    cells = {(r["second"], r["equal"]): r for r in selected}

    def cell(family: str, equal: str) -> str:
        row = cells[family, equal]
        if "accuracy" not in equal:
            return points(row)
        value, low, high = (row[k] for k in ("difference", "low", "high"))
        return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"

    header = [
        f"{equal} ({at:.3f})" + (": cost" if "accuracy" in equal else ": points")
        for equal, at in places
    ]
    families = dict.fromkeys(r["second"] for r in selected)
    return markdown(
        (f"`{first}` minus", *header),
        [(f"`{f}`", *(cell(f, equal) for equal, _ in places)) for f in families],
    )
