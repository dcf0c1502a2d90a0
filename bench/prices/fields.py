"""Names of the fields of time and money in result rows."""

from __future__ import annotations

MONEY = {"computed": "money", "stateless": "money_stateless"}  # by way of counting


def time_field(load: int) -> str:
    """The field of the time at this load."""
    return f"time_{load}"
