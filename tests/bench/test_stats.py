"""Intervals against published values and against resampling."""

from __future__ import annotations

import numpy as np
import pytest

from bench.stats import paired_difference, wilson


def test_wilson_against_newcombe():
    """Newcombe 1998 (two papers, same data): 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for hits, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(hits, count) == pytest.approx((low, high), abs=1e-4)


def pairs(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    a = [True] * (both + first) + [False] * (second + neither)
    b = [True] * both + [False] * first + [True] * second + [False] * neither
    return a, b


def test_paired_difference_by_hand():
    """36 both, 12 only the first, 2 only the second, 0 neither: difference 10 of 50."""
    difference, low, high = paired_difference(*pairs(36, 12, 2, 0))
    assert difference == pytest.approx(0.2)
    assert (low, high) == pytest.approx((0.0569, 0.3404), abs=5e-3)


def test_no_difference_still_has_width():
    difference, low, high = paired_difference([True] * 500, [True] * 500)
    assert difference == 0 and low < -0.005 and high > 0.005


def test_interval_covers_the_truth():
    """Simulated pairs with a known difference: about 95% of the intervals hold it."""
    rng = np.random.default_rng(0)
    shares, truth, held = [0.85, 0.08, 0.05, 0.02], 0.03, 0
    for _ in range(400):
        difference = paired_difference(*pairs(*rng.multinomial(300, shares)))
        held += difference[1] <= truth <= difference[2]
    assert 0.92 <= held / 400 <= 0.99


def test_unequal_samples_are_refused():
    with pytest.raises(ValueError, match="equally long"):
        paired_difference([True], [True, False])
