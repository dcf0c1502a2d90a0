"""The report's tables, from result rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.prices.table import prices_notes, prices_table
from bench.table import again_notes, render

Row = dict[str, Any]

NOTES = """\
large tokens  share of all tokens of the answers that the large model wrote
cut off       answers that the token limit ended
decode        FLOPs of the rows that gave a token, relative to large alone in this run
with catch-up FLOPs of all rows, what either model read of the other's text included
mixed         what to expect if whole problems went to the large model at random, so many that it
              wrote the same share of the tokens: what routing by step has to be better than"""


def mixed(row: Row, small: Row, large: Row) -> float:
    """Expected accuracy if whole problems are given to either model at random.

    The large model gets so many of them that its share of all tokens is that of ``row``.

    Args:
        row: of the policy to compare with; ``large_token_share`` is used.
        small: of the small model alone; ``tokens`` and ``accuracy`` are used.
        large: likewise of the large model, on the same problems.
    """
    share = row["large_token_share"]
    # Solved for p, the share of problems: p * large / (p * large + (1 - p) * small) = share.
    by_large, by_small = share * small["tokens"], (1 - share) * large["tokens"]
    problems = by_large / (by_large + by_small) if by_large else 0.0
    accuracy: float = problems * large["accuracy"] + (1 - problems) * small["accuracy"]
    return accuracy


def _right(accuracy: float, count: int) -> str:
    return f"{accuracy * count:.0f} of {count}"


def policies_table(rows: Sequence[Row]) -> str:
    """A line for each policy."""
    header = (
        "policy",
        "right",
        "95% interval",
        "large tokens",
        "cut off",
        "seconds",
        "tokens/s",
        "FLOPs decode",
        "with catch-up",
        "mixed",
    )
    return render(
        header,
        [
            (
                r["policy"],
                _right(r["accuracy"], r["n"]),
                f"{r['ci_low']:.3f} - {r['ci_high']:.3f}",
                f"{r['large_token_share']:.1%}",
                str(r["cut_off"]),
                f"{r['seconds']:.0f}",
                f"{r['tokens_per_second']:.1f}",
                f"{r['flops_decode']:.3f}",
                f"{r['flops_catchup']:.3f}",
                "" if r["mixed"] is None else f"{r['mixed'] * r['n']:.1f} of {r['n']}",
            )
            for r in rows
        ],
    )


def latency_table(rows: Sequence[Row]) -> str:
    """A line for each policy: one answer at a time."""
    header = ("one at a time", "right", "large tokens", "seconds an answer", "tokens an answer")
    return render(
        header,
        [
            (
                r["policy"],
                _right(r["accuracy"], r["n"]),
                f"{r['large_token_share']:.1%}",
                f"{r['seconds'] / r['n']:.1f}",
                f"{r['tokens'] / r['n']:.0f}",
            )
            for r in rows
        ],
    )


def report(policies: Sequence[Row], latency: Sequence[Row]) -> str:
    """Both tables with their notes."""
    parts = [policies_table(policies), ""] if policies else ["no policy was finished"]
    for row in policies:
        if row.get("tau") is not None:
            parts.append(
                f"{row['policy']}: fitted on {row['calibration_problems']} other problems, "
                f"no answers needed; {row['signal']} over {row['window']}, tau {row['tau']:g}"
            )
        if row.get("errors"):
            failed = f"{row['errors']} of {row['n']} answers"
            parts.append(f"{row['policy']}: {failed} ended in an error (unusable logits)")
    again = again_notes(policies, "free some memory, or ask for fewer problems (--problems)")
    parts += [*again, NOTES] if policies else []
    if policies and all("prices" in row for row in policies):  # older rows have none
        parts += ["", prices_table(policies), "", prices_notes(policies)]
    if latency:
        parts += ["", latency_table(latency)]
    return "\n".join(parts)
