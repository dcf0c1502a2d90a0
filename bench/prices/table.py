"""The table of time and money, from result rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.prices.fields import MONEY, time_field
from bench.table import render

Row = dict[str, Any]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def prices_table(rows: Sequence[Row]) -> str:
    """A line for each policy; rows with the fields of a price list."""
    loads = rows[0]["prices"]["loads"]
    times = [time_field(load) for load in loads]
    header = (
        "policy",
        *["accuracy"] * _measured(rows),
        "large tokens",
        *(f"time at load {load}" for load in loads),
        "money",
        "stateless",
        *(f"ms an answer at {load}" for load in loads),
        "price of an answer",
    )
    return render(
        header,
        [
            (
                r["policy"],
                *[_number(r["accuracy"], ".3f")] * _measured(rows),
                _number(r["large_token_share"], ".1%"),
                *(_number(r[name], ".3f") for name in (*times, *MONEY.values())),
                *(_milliseconds(r["an_answer"][name]) for name in times),
                _number(r["an_answer"]["money"], ".1f"),
            )
            for r in rows
        ],
    )


def _measured(rows: Sequence[Row]) -> bool:
    return any(r["accuracy"] is not None for r in rows)


def _milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{1e3 * seconds:.{0 if seconds >= 1 else 3}{'f' if seconds >= 1 else 'g'}}"


def prices_notes(rows: Sequence[Row], toy: bool = False, base: str = "large") -> str:
    """What the columns mean.

    ``toy``: the shapes are those of the embedded pair. ``base``: the policy that all are compared
    with.
    """
    p = rows[0]["prices"]
    where = (
        f"the tick times of {p['tick_times']}"
        if p["card"] is None
        else f"the roofline of {p['card']} at {p['efficiency']:g}, {p['overhead_us']:g} us a tick, "
        "bf16"
    )
    lines = [
        f"Time and money are modelled, not measured, relative to policy {base}: {where}.",
        "  time at load N  seconds of the card for an answer with N requests at once",
        f"  money           tokens billed: generated 1 (small model {p['small_price']:.3g}), read "
        f"{p['prompt_price']:g} of that,",
        "                  also guesses that are verified",
        "  stateless       the same where a server keeps no KV: prefixes are read again at "
        f"{p['cached_price']:g}",
        "  price of an answer  in generated tokens of the large model",
    ]
    if p["fits_card"] is False:
        lines.append(
            f"The weights of both models do not fit on one {p['card']}: the time is that of a card "
            "as fast, with more memory."
        )
    if p["priced_as"]:
        lines.append(f"Time and money are those of the shapes of {p['priced_as']}.")
    elif toy:
        lines.append(
            "The embedded pair on such a card is a toy, its ticks are mostly overhead: --priced-as "
            "qwen-1.5b/qwen-32b\ntakes the shapes of a real pair for these two."
        )
    return "\n".join(lines)


def against(row: Row, others: Sequence[Row]) -> str:
    """A policy's time and money over those of others, in words."""
    parts = []
    for other in others:
        costs = [
            *((f"time at load {load}", time_field(load)) for load in row["prices"]["loads"]),
            ("money", "money"),
        ]
        said = ", ".join(f"{words} {row[field] / other[field]:.3f}" for words, field in costs)
        parts.append(f"{row['policy']} over {other['policy']}: {said}")
    return "\n".join(parts)
