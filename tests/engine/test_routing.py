"""Signals, the mixture, calibration files and policies."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Boundary, Calibration, Decision, Random, Signals, Steer, SteerError, Threshold
from engine.routing.mixture import Mixture, fit_mixture
from engine.routing.names import make_policy
from engine.routing.signals import confidence_scale


def signals(max_prob: float = 0.9, entropy: float = 0.3) -> Signals:
    log_odds = math.log(max_prob / (1 - max_prob))
    return Signals(max_prob, entropy, log_odds, margin=2.0, max_logit=9.0, logsumexp=9.1)


def boundary(found: Signals | None = None, request: int = 1, step: int = 0) -> Boundary:
    return Boundary(request, step, 20, 20, None, 20, found)


def two_normals(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(-1, 0.7, 600), rng.normal(6, 1.5, 1400)])


def test_em_recovers_two_normals():
    mixture = fit_mixture(two_normals().tolist())
    assert mixture.weights[1] == pytest.approx(0.7, abs=0.03)
    assert mixture.means == pytest.approx((-1, 6), abs=0.2)
    assert mixture.deviations == pytest.approx((0.7, 1.5), abs=0.15)


def test_em_raises_the_likelihood_over_a_single_normal():
    values = two_normals(1)
    mixture = fit_mixture(values.tolist())
    both = sum(
        w / s * np.exp(-0.5 * ((values - m) / s) ** 2)
        for w, m, s in zip(mixture.weights, mixture.means, mixture.deviations, strict=True)
    )
    spread = values.std()
    single = np.exp(-0.5 * ((values - values.mean()) / spread) ** 2) / spread
    assert np.log(both).mean() > np.log(single).mean() + 0.3


@given(
    st.tuples(st.floats(0.05, 0.95), st.floats(0.05, 5), st.floats(0.05, 5)),
    st.lists(st.floats(-50, 50), min_size=2, max_size=20),
)
def test_posterior_is_monotone_whatever_the_variances(shape, values):
    """Unequal variances would turn it back in a tail."""
    weight, low, high = shape
    mixture = Mixture((weight, 1 - weight), (-1.0, 2.0), (low, high))
    posteriors = [mixture.posterior(v) for v in sorted(values)]
    assert posteriors == sorted(posteriors)
    assert all(0 <= p <= 1 for p in posteriors)


def test_posterior_matches_bayes_between_the_means():
    mixture = Mixture((0.3, 0.7), (0.0, 4.0), (1.0, 1.0))
    low, high = 0.3 * math.exp(-0.5 * 1.5**2), 0.7 * math.exp(-0.5 * 2.5**2)
    assert mixture.posterior(1.5) == pytest.approx(high / (low + high))
    assert mixture.posterior(math.nan) == 0.0


@pytest.mark.parametrize("values", [[1.0] * 20, [1.0, 2.0], [math.nan] * 10])
def test_mixture_refuses_what_it_cannot_fit(values: list[float]):
    with pytest.raises(SteerError):
        fit_mixture(values)


def test_scales_put_the_surer_higher():
    sure, unsure = signals(0.999, 0.01), signals(0.4, 1.2)
    for name in ("max_prob", "entropy", "log_odds"):
        assert confidence_scale(name, sure) > confidence_scale(name, unsure), name
    assert confidence_scale("max_prob", sure) == pytest.approx(math.log(0.999 / 0.001))


def test_certainty_stays_finite():
    """A probability that rounds to 1 has infinite odds; files and fits need numbers."""
    certain = Signals(1.0, 0.0, math.inf, math.inf, 50.0, 50.0)
    assert math.isfinite(confidence_scale("max_prob", certain))
    assert math.isfinite(confidence_scale("entropy", certain))
    json.dumps(certain.to_json(), allow_nan=False)


def calibration(pair: str = "pair-a") -> Calibration:
    found = [signals(p) for p in (0.3, 0.4, 0.5, 0.45, 0.99, 0.995, 0.999, 0.9999, 0.998)]
    return Calibration.fit(pair, "max_prob", found, tau=0.7)


def test_calibration_file_round_trip(tmp_path: Path):
    saved = calibration()
    saved.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json", "pair-a") == saved


def test_calibration_of_another_pair(tmp_path: Path):
    calibration("pair-b").save(tmp_path / "c.json")
    with pytest.raises(SteerError, match=r"c\.json: fitted on pair pair-b, this engine is pair-a"):
        Calibration.load(tmp_path / "c.json", "pair-a")


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"schema": "steer-calibration/1"}', '{"schema": "other"}']
)
def test_calibration_file_that_is_none(tmp_path: Path, content: str):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(SteerError, match=r"c\.json"):
        Calibration.load(tmp_path / "c.json", "pair-a")


def test_missing_calibration_file(tmp_path: Path):
    with pytest.raises(SteerError, match="no such calibration file"):
        Calibration.load(tmp_path / "c.json", "pair-a")


def test_steer_hands_over_below_tau():
    policy = Steer(calibration(), tau=0.5)
    unsure, sure = policy.decide(boundary(signals(0.35))), policy.decide(boundary(signals(0.999)))
    assert (unsure.model, sure.model) == ("large", "small")
    assert unsure.posterior is not None and unsure.posterior < 0.5 <= (sure.posterior or 0)


def test_steer_at_the_ends_of_tau():
    found = boundary(signals(0.999))
    assert Steer(calibration(), tau=0.0).decide(found).model == "small"
    with pytest.raises(SteerError, match=r"tau must be in \[0, 1\]"):
        Steer(calibration(), tau=1.5)


def test_threshold_knows_that_more_entropy_is_less_sure():
    assert Threshold("max_prob", 0.8).decide(boundary(signals(0.7))).model == "large"
    assert Threshold("max_prob", 0.8).decide(boundary(signals(0.9))).model == "small"
    assert Threshold("entropy", 0.5).decide(boundary(signals(entropy=0.7))).model == "large"
    assert Threshold("entropy", 0.5).decide(boundary(signals(entropy=0.2))).model == "small"


def test_random_keeps_its_share_and_repeats():
    policy = Random(0.3, seed=4)
    drawn = [policy.decide(boundary(request=r, step=s)).model for r in range(300) for s in range(9)]
    again = [policy.decide(boundary(request=r, step=s)).model for r in range(300) for s in range(9)]
    assert drawn == again
    assert drawn.count("large") / len(drawn) == pytest.approx(0.3, abs=0.03)


def test_random_ends_are_exact():
    assert {Random(0.0).decide(boundary(step=s)).model for s in range(200)} == {"small"}
    assert {Random(1.0).decide(boundary(step=s)).model for s in range(200)} == {"large"}


def test_a_function_is_a_policy():
    policy = make_policy(lambda b: Decision("large", "because") if b.step else "small")
    assert policy.reads
    assert policy.decide(boundary(step=0)) == Decision("small", "callable")
    assert policy.decide(boundary(step=1)).reason == "because"


def test_steer_by_name_needs_a_calibration():
    with pytest.raises(SteerError, match="policy steer needs a calibration of this pair"):
        make_policy("steer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau": 5}, "tau must be in"),
        ({"tau": float("nan")}, "tau must be in"),
        ({"window": "paragraph"}, "unknown window 'paragraph'"),
        ({"signal": "mood"}, "unknown signal 'mood'"),
        ({"mixture": {"weights": [1, 0], "means": [0, 1], "deviations": [1, 1]}}, "above 0"),
        ({"mixture": {"weights": [1, 1], "means": [0, 1], "deviations": [0, 1]}}, "above 0"),
        ({"mixture": {"weights": [1, 1], "means": [2, 1], "deviations": [1, 1]}}, "lower mean"),
        ({"mixture": {"weights": [1, 1], "means": [0], "deviations": [1, 1]}}, "calibration file"),
    ],
)
def test_calibration_files_are_checked(tmp_path: Path, change: dict, message: str):
    path = tmp_path / "c.json"
    calibration().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SteerError, match=message) as error:
        Calibration.load(path, "pair-a")
    assert str(error.value).startswith(str(path))
