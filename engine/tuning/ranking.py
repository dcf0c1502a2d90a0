"""The area under the ROC curve, and its interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CHANCE = 0.5  # AUROC of scores that say nothing
_RESAMPLES = 1000


def auroc(scores: Sequence[float], wrong: Sequence[float]) -> float:
    """Chance that a wrong item scores lower than a right one; ties count half.

    ``wrong``: labels (0 or 1), or chances in [0, 1]; an item then counts as wrong and as right in
    these shares (a weighted Mann-Whitney test). NaN if all are right or all are wrong.
    """
    x, bad = np.asarray(scores, np.float64), np.asarray(wrong, np.float64)
    good = 1 - bad
    if bad.sum() <= 0 or good.sum() <= 0:
        return float("nan")
    _, groups = np.unique(x, return_inverse=True)
    bads, goods = np.bincount(groups, bad), np.bincount(groups, good)
    higher = goods.sum() - np.cumsum(goods)
    return float((bads * (higher + goods / 2)).sum() / (bad.sum() * good.sum()))


def auroc_interval(
    scores: Sequence[float],
    wrong: Sequence[float],
    groups: Sequence[int],
    resamples: int = _RESAMPLES,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """:func:`auroc` with an interval: percentiles of a bootstrap that draws whole groups.

    Items of one group are not independent (the steps of one answer), so groups are drawn. Draws in
    which all are right or all are wrong are left out.

    Args:
        groups: the group of each item, from 0.
        resamples: draws, always the same ones.
        level: chance that the interval is meant to cover.

    Returns:
        The area, and the interval's ends; NaN where the area is not defined.
    """
    x, bad = np.asarray(scores, np.float64), np.asarray(wrong, np.float64)
    area = auroc(scores, wrong)
    if np.isnan(area):
        return area, area, area
    order = np.argsort(x, kind="stable")
    bad, of = bad[order], np.asarray(groups, np.int64)[order]
    _, starts = np.unique(x[order], return_index=True)
    rng, count = np.random.default_rng(0), int(of.max()) + 1
    areas = []
    for _ in range(resamples):
        weights = np.bincount(rng.integers(count, size=count), minlength=count)[of]
        bads = np.add.reduceat(weights * bad, starts)
        goods = np.add.reduceat(weights * (1 - bad), starts)
        pairs = bads.sum() * goods.sum()
        if pairs > 0:
            higher = goods.sum() - np.cumsum(goods)
            areas.append((bads * (higher + goods / 2)).sum() / pairs)
    ends = (1 - level) / 2, (1 + level) / 2
    low, high = np.quantile(areas, ends) if areas else (area, area)
    return area, float(low), float(high)
