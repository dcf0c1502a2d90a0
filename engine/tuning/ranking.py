"""The area under the ROC curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
