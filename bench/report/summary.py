"""One page in words. Every figure in it is in a row of the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bench.report.tables import Row, costs, of, points

MARGIN = -0.02  # the lower bound that "not worse than the large model" allows


def summary(rows: list[Row], domains: Iterable[str]) -> str:
    """All domains, then where the time went."""
    parts = [f"**{domain}.** " + " ".join(_domain(rows, domain)) for domain in domains]
    return "\n\n".join([*parts, _time(rows)])


def _domain(rows: list[Row], domain: str) -> Iterator[str]:
    steer = next(r for r in of(rows, "setting", domain=domain, policy="steer") if r["chosen"])
    pairs = {r["second"].partition(":")[0]: r for r in of(rows, "paired", domain=domain)}
    large = pairs["large"]
    verdict = "not worse" if large["low"] > MARGIN else "NOT shown to be no worse"
    yield (
        f"STEER (tau {steer['parameter']:.4g}, n = {steer['n']}) is right on "
        f"{steer['accuracy']:.1%}, minus the large model alone {points(large)} points: {verdict} "
        f"within 2 points. It takes {_saved(steer['flops_decode'])} decode-only and "
        f"{_saved(steer['flops_catchup'])} with catch-up."
    )
    yield from _prices(rows, domain, pairs)
    random = pairs["random"]
    above = "above" if random["low"] > 0 else "NOT shown to be above"
    yield f"It is {above} random steps at the same share: {points(random)} points."
    oracle = of(rows, "setting", domain=domain, policy="oracle")[0]
    yield (
        f"A router that knows every error of the small model gets {oracle['accuracy']:.1%} for "
        f"{oracle['flops_catchup']:.3f} of the FLOPs with catch-up, STEER pays "
        f"{steer['flops_catchup']:.3f}."
    )
    yield from _rivals(rows, domain)
    yield _cost_aware(rows, domain)
    yield from _signals(rows, domain)
    yield from _audit(rows, domain)


def _prices(rows: list[Row], domain: str, pairs: dict[str, Row]) -> Iterator[str]:
    time, words = list(costs(rows, domain).items())[2]
    for name in ("large", "speculate"):
        row = pairs[name]
        yield (
            f"Against {name} it takes {row[time]:.3f} of the {words} "
            f"and {row['money']:.3f} of the money."
        )


def _saved(relative: float) -> str:
    return f"{abs(1 - relative):.1%} {'fewer' if relative <= 1 else 'MORE'} FLOPs"


def _rivals(rows: list[Row], domain: str) -> Iterator[str]:
    for cost, words in costs(rows, domain).items():
        found = [
            r
            for r in of(rows, "frontier", domain=domain, accounting=cost, first="steer")
            if r["equal"] == "steer's cost" and r["second"] != "oracle"
        ]
        sides: dict[str, list[str]] = {"above": [], "below": [], "level with": []}
        for row in found:
            side = "above" if row["low"] > 0 else "below" if row["high"] < 0 else "level with"
            sides[side].append(row["second"])
        said = [f"{side} {', '.join(names)}" for side, names in sides.items() if names]
        yield f"At its own {words}, its frontier is {'; '.join(said)}."
        cascade = next(r for r in found if r["second"] == "cascade")
        if cascade["low"] <= 0:
            yield f"It does not beat the cascade there: {points(cascade)} points."


def _cost_aware(rows: list[Row], domain: str) -> str:
    found = of(
        rows, "frontier", domain=domain, accounting="catchup", first="steer-cost", second="steer"
    )
    at = {r["equal"]: r for r in found}
    half, mean = at["half of steer's cost"], at["mean up to steer's cost"]
    full = at["steer's cost"]
    better = "better than" if mean["low"] > 0 else "NOT shown to be better than"
    return (
        f"Cost-aware routing is {better} a fixed tau with catch-up counted: {points(mean)} points "
        f"on average over costs up to STEER's, {points(half)} at half of it, "
        f"{points(full)} at STEER's own."
    )


def _signals(rows: list[Row], domain: str) -> Iterator[str]:
    found = [r for r in of(rows, "signal", domain=domain) if r["auroc"] is not None]
    first = max((r for r in found if r["window"] == "boundary"), key=_area)
    best = max(found, key=_area)
    chosen = [r for r in found if r["chosen"]]
    used = chosen[0] if chosen else best
    yield (
        f"For the small model's real errors the first token's best signal has an AUROC of "
        f"{first['auroc']:.3f} ({first['signal']}), the one chosen without labels "
        f"{used['auroc']:.3f} ({used['signal']} over {used['window']}), the best of all "
        f"{best['auroc']:.3f} ({best['signal']} over {best['window']})."
    )


def _audit(rows: list[Row], domain: str) -> Iterator[str]:
    best = max(of(rows, "audit", domain=domain), key=lambda r: r["auroc"] or 0)
    if best["auroc"] is None:
        return
    yield (
        f"Once the large model has read a step, its {best['score']} of log p has an AUROC of "
        f"{best['auroc']:.3f}; the mark that catches 95% of the wrong steps takes back "
        f"{best['false_rollbacks']:.1%} of the right ones."
    )
    found = of(rows, "frontier", domain=domain, accounting="catchup", first="steer")
    for family in ("judge", "audit", "steer+audit"):
        row = next(r for r in found if r["second"] == family and r["equal"] == "steer's cost")
        yield f"STEER minus {family} at STEER's cost with catch-up: {points(row)} points."
    agreed = of(rows, "setting", domain=domain, policy="steer-agreement")[0]
    yield (
        f"With tau from agreement, no answers, it is right on {agreed['accuracy']:.1%} at "
        f"{agreed['flops_catchup']:.3f} with catch-up."
    )


def _area(row: Row) -> float:
    return float(row["auroc"])


def _time(rows: list[Row]) -> str:
    spent: dict[str, float] = {}
    for row in of(rows, "time"):
        spent[row["part"]] = spent.get(row["part"], 0.0) + row["seconds"]
    order = sorted(spent.items(), key=lambda item: -item[1])
    total = sum(spent.values())
    said = ", ".join(f"{part} {seconds / total:.0%}" for part, seconds in order[:4])
    return f"**Time.** {total:.0f} seconds of work on all processes together; most of it: {said}."


def title(common: dict[str, Any]) -> str:
    """The machine, versions, commit and date of a run."""
    torch = common["versions"]["torch"]
    return f"{common['machine']}, torch {torch}, commit {common['commit']}, {common['date'][:10]}."
