"""Runs every policy on one domain."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.calibrate import AUTO, calibrate, samples_of
from bench.evaluate import Evaluation, drawn_rows, evaluate
from bench.prices.options import PriceFlags
from bench.prices.price_list import PriceList
from bench.report.audits import audit_rows, rollback_counts
from bench.report.compose import Composer
from bench.report.domain import Domain, domain
from bench.report.oracle import Oracle
from bench.report.point import Costing, Point, point_of
from bench.report.rivals import Setting, settings
from bench.report.signals import SignalRow, signal_rows, step_labels
from engine import (
    AuditOnly,
    Calibration,
    Engine,
    EngineConfig,
    Policy,
    Random,
    SamplingParams,
    Steer,
    SteerError,
    Window,
)
from engine.config import ARENA_TOKENS
from engine.tuning.agreement import read_steps, tau_for_agreement
from engine.tuning.samples import Sample
from engine.tuning.target import ladder

Say = Callable[[str], None]
_NEVER = -1e6  # a mark that no step falls below
_AGREEMENT = 0.99
# Tokens of KV for each problem, so that KV of one setting is still there for the next. Memory is
# touched only as far as it is used: about 1 GB for 1,000 problems.
_ROOM = 256


@dataclass
class Measured:
    """One domain: its calibration, its points and the quality of its signals.

    ``prices``: what time and money assume. ``seconds``: by part of the work. ``right``: which
    answers of the small model are right.
    """

    name: str
    problems: int
    calibration: Calibration
    prices: dict[str, Any]
    points: list[Point] = field(default_factory=list)
    signals: list[SignalRow] = field(default_factory=list)
    audits: list[dict[str, Any]] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def of(self, family: str) -> list[Point]:
        """The points of one policy."""
        return [p for p in self.points if p.family == family]

    @property
    def large(self) -> Point:
        """The large model alone."""
        return self.of("large")[0]

    @property
    def steer(self) -> Point:
        """STEER with the tau that the calibration problems gave."""
        return next(p for p in self.of("steer") if p.chosen)


def measure(name: str, problems: int, say: Say, prices: PriceFlags) -> Measured:
    """All policies on one domain; runs in a process of its own, on one thread."""
    torch.set_num_threads(1)
    return _Measurement(domain(name, problems), say, prices).run()


class _Measurement:
    def __init__(self, where: Domain, say: Say, prices: PriceFlags) -> None:
        self.domain, self.say = where, say
        self.seconds: dict[str, float] = {}
        with self.timed("loading"):
            room = max(ARENA_TOKENS, _ROOM * len(where.test.problems))
            drawn = drawn_rows(["speculate"], EngineConfig.max_sequences)
            config = EngineConfig(arena_tokens=room, max_drawn_rows=drawn)
            self.engine = Engine(where.pair, config=config)
        shapes = self.engine.shapes
        self.costing = Costing(shapes, PriceList.of(prices, shapes))

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        spent = time.perf_counter() - started
        self.seconds[part] = self.seconds.get(part, 0.0) + spent

    def run(self) -> Measured:
        with self.timed("calibration"):
            calibration = calibrate(self.engine, self.domain.calibration, window=AUTO)
            fitted_on = samples_of(self.engine, self.domain.calibration)
        self.say(f"calibrated on {calibration.window}, tau {calibration.tau:.4g}")
        settings_of = self.costing.prices.settings
        problems = len(self.domain.test.problems)
        measured = Measured(self.domain.name, problems, calibration, settings_of)
        with self.timed("models alone"):
            large = self._evaluate(self.engine.policy("large"))
            small = self._small(measured)
        if large.ended("error"):
            raise SteerError(f"{self.domain.name}: the large model's logits are unusable")
        measured.points += [
            point_of("small", None, small, self.costing),
            point_of("large", None, large, self.costing),
        ]
        for setting in settings(calibration, fitted_on, self.engine.row_price):
            self._run(setting, measured)
        share = measured.steer.large_step_share
        self._run(Setting("random", share, Random(share), chosen=True), measured)
        self._run(Setting("oracle", None, Oracle(self.engine, self.domain)), measured)
        self._agreement(calibration, fitted_on, measured)
        with self.timed("composing"):
            composer = Composer(small, large, measured.samples, self.costing)
            measured.points += composer.cascade() + composer.query() + composer.query_random()
        with self.timed("signals"):
            labels = step_labels(self.domain, small, measured.samples)
            measured.signals = signal_rows(measured.samples, labels)
        with self.timed("audit of all steps"):
            read = self._evaluate(AuditOnly(_NEVER))
            measured.audits = list(audit_rows(read, labels, self.domain.name))
        measured.seconds = self.seconds
        return measured

    def _agreement(
        self, calibration: Calibration, samples: list[Sample], measured: Measured
    ) -> None:
        """Measure STEER with a tau that was chosen without answers."""
        tests = self.domain.calibration
        with self.timed("steer-agreement"):
            prompts = [p.prompt for p in tests.problems]
            params = SamplingParams(max_tokens=tests.max_tokens)
            window = Window.parse(calibration.window)
            read = read_steps(self.engine, prompts, params, window)
            taus = ladder(calibration, samples)
            fitted = tau_for_agreement(calibration, read, taus, _AGREEMENT)
        setting = Setting("steer-agreement", fitted.tau, Steer(fitted), chosen=True)
        self._run(setting, measured)

    def _small(self, measured: Measured) -> Evaluation:
        done = self._evaluate(self.engine.policy("small"), token_signals=True)
        measured.samples = [Sample.of(c) for c in done.completions]
        measured.right = list(done.correct)
        return done

    def _evaluate(self, policy: Policy, name: str | None = None, **options: Any) -> Evaluation:
        """Evaluate on the test problems; prices are as if settings shared no cache."""
        tests = self.domain.test
        return evaluate(self.engine, policy, tests, name, count_spared=True, **options)

    def _run(self, setting: Setting, measured: Measured) -> None:
        with self.timed(setting.family):
            done = self._evaluate(setting.policy, setting.family, audit=setting.audit)
            extra = rollback_counts(self.engine, self.domain, done)
            point = point_of(
                setting.family, setting.parameter, done, self.costing, setting.chosen, extra
            )
        measured.points.append(point)
        cost = point.cost(measured.large, "catchup")
        self.say(f"{point.label}: accuracy {point.accuracy:.3f}, FLOPs {cost:.3f} with catch-up")
