"""Chooses tau without answers, from steps of the small model that the large one has scored.

The small model writes, a few steps are handed over at random, and the large model scores the steps
that it catches up on. The handoffs must be random: otherwise only steps before an unsure boundary
would be read, a biased sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.conversation import Asked
from engine.engine import Engine
from engine.errors import SteerError
from engine.params import SamplingParams
from engine.request import Completion
from engine.routing.audit import step_score
from engine.routing.calibration import Calibration
from engine.routing.policies import Random
from engine.routing.signals import Signals
from engine.routing.windows import Window

SHARE = 0.1  # share of steps that are handed over at random
MARK = -3.0  # log p_large of a step's least likely token: below it the models disagree
_LEAST = 30  # read steps: an estimate from fewer is useless


@dataclass(frozen=True)
class ReadStep:
    """A step of the small model that the large one has read.

    ``agreed``: whether the large model's score of it reaches the mark.
    """

    signals: Signals
    agreed: bool


def read_steps(
    engine: Engine, prompts: Sequence[Asked], params: SamplingParams, window: Window, seed: int = 0
) -> list[ReadStep]:
    """Run both models once with random handoffs; the steps that the large model has scored."""
    wanted = replace(params, token_signals=True, audit="score")
    done = engine.generate(prompts, wanted, Random(SHARE, seed))
    return [step for completion in done for step in _read(completion, window)]


def _read(completion: Completion, window: Window) -> list[ReadStep]:
    first, signals = len(completion.prompt_token_ids), completion.token_signals or ()
    steps = []
    before: list[Signals] = []
    so_far: list[Signals] = []
    for step in completion.steps:
        start = step.position - first
        own = [s for s in signals[start : start + len(step.token_ids)] if s is not None]
        looked = {"step": before, "so-far": so_far}.get(window.kind, own[: window.tokens or 1])
        seen = window.summary(looked)
        if step.audit and seen is not None:
            steps.append(ReadStep(seen, step_score("min", step.audit) >= MARK))
        before = own
        so_far = so_far + own
    return steps


def tau_for_agreement(
    calibration: Calibration, steps: Sequence[ReadStep], taus: Sequence[float], aim: float
) -> Calibration:
    """The calibration at the lowest tau where the large model agrees with ``aim`` of kept steps.

    Args:
        taus: candidates, ascending; if none is good enough, the highest is taken.
        aim: least share of the kept steps, in [0, 1].

    Raises:
        SteerError: if the large model has read too few steps.
    """
    if len(steps) < _LEAST:
        raise SteerError(
            f"the large model has read {len(steps)} steps of the small one, at least {_LEAST} are "
            "needed: give more prompts"
        )
    sure = [(calibration.posterior(step.signals), step.agreed) for step in steps]
    rows = []
    for tau in taus:
        kept = [agreed for posterior, agreed in sure if posterior >= tau]
        share = sum(kept) / len(kept) if kept else 1.0
        rows.append({"tau": tau, "kept": len(kept), "agreement": share})
        if share >= aim:
            break
    provenance = {
        **calibration.provenance,
        "aim": f"agreement:{aim:g} with the large model on steps that it has read",
        "aim_reached": share >= aim,
        "read_steps": len(steps),
        "random_share": SHARE,
        "disagreement_mark": MARK,
        "agreement": rows,
    }
    return replace(calibration, tau=rows[-1]["tau"], provenance=provenance)
