"""Tables and traces for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from engine import Completion

_COLOURS = {"small": "\033[36m", "large": "\033[33m"}
_RESET = "\033[0m"
_AGAIN = 0.05  # share of rows computed again above which a table says so


def render(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table: the first column left, the others right."""
    widths = [max(len(r[i]) for r in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def policies_table(rows: Sequence[dict[str, Any]]) -> str:
    """The main table, from result rows; with a column for answers cut off if any was."""
    cut = any(r.get("cut_off") for r in rows)  # older rows may lack it
    guessed = any("speculated" in r for r in rows)
    header = (
        "policy",
        "accuracy",
        "95% interval",
        *["cut off"] * cut,
        "large steps",
        "large tokens",
        "FLOPs decode",
        "with catch-up",
        "re-prefill",
        "computed again",
        *["tokens a large pass", "weights read"] * guessed,
        "seconds",
        "tokens/s",
    )
    return render(
        header,
        [
            (
                r["policy"],
                f"{r['accuracy']:.3f}",
                f"{r['ci_low']:.3f} - {r['ci_high']:.3f}",
                *[f"{r.get('cut_off', 0) / r['n']:.1%}"] * cut,
                f"{r['large_step_share']:.1%}",
                f"{r['large_token_share']:.1%}" if "large_token_share" in r else "-",
                *(f"{r[f'flops_{a}']:.3f}" for a in ("decode", "catchup", "reprefill")),
                f"{r['recomputed_share']:.1%}",
                *[
                    f"{r['tokens_a_pass']:.2f}" if "speculated" in r else "-",
                    f"{r['weights_read']:.2f}" if "speculated" in r else "-",
                ]
                * guessed,
                f"{r['seconds']:.1f}",
                f"{r['tokens_per_second']:.0f}",
            )
            for r in rows
        ],
    )


def again_notes(rows: Iterable[dict[str, Any]], remedy: str) -> list[str]:
    """A line for each policy with more than 5% of its rows computed again.

    ``remedy``: what would avoid it.
    """
    return [
        f"{row['policy']}: {row['recomputed_share']:.1%} of its rows were computed again, as "
        f"memory for KV was short: {remedy}"
        for row in rows
        if row["recomputed_share"] > _AGAIN
    ]


def trace_lines(completion: Completion, colour: bool) -> str:
    """One line per step: the model that wrote it, its text, and the reason."""
    lines = []
    for step in completion.steps:
        start, end = (_COLOURS[step.model], _RESET) if colour else ("", "")
        text = step.text.strip().replace("\n\n", " / ") or "(empty)"
        lines.append(f"  {start}{step.model:5}  {text:24}{end}  {step.reason}")
    return "\n".join(lines)
