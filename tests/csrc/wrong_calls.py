"""Calls of the core that make no sense: each must fail as documented and change nothing."""

from __future__ import annotations

import numpy as np
from hypothesis.stateful import rule

from .checked_core import CheckedCore
from .drawn_shapes import Dice, dice, draw_request, nonsense
from .kinds import OVER, SMALL
from .model_sequence import SequenceModel
from .model_text import Request

UNKNOWN = 10**6  # an id that no sequence has


class WrongCalls(CheckedCore):
    """Rules that call the core in ways that it refuses."""

    @rule(dice=dice(42))
    def add_nonsense(self, dice: Dice) -> None:
        """One field of a good request is wrong; nothing is queued."""
        fields = dict(vars(draw_request(dice, self.shape)), max_repeats=0, trial_tokens=0)
        wrong, message = dice.pick(*nonsense(self.shape, len(fields["prompt"])))
        samples = wrong.pop("samples", 1)
        with self.operation("nonsense"):
            self.refused(ValueError, message, self.send, Request(**(fields | wrong)), samples)

    @rule(dice=dice(5))
    def wrong_call(self, dice: Dice) -> None:
        everyone = list(self.model.sequences.values())
        kinds = [self.wrong_ids, self.wrong_lanes]
        kinds += [lambda dice: self.wrong_about(dice.pick(*everyone))] if everyone else []
        error, message, call, arguments = dice.pick(*dice.pick(*kinds)(dice))
        with self.operation("wrong call"):
            self.refused(error, message, call, *arguments)

    def wrong_ids(self, dice: Dice) -> list[tuple]:
        core, gone = self.core, dice.pick(-1, 0, UNKNOWN)
        return [
            (IndexError, "unknown sequence", call, (gone, *arguments))
            for call, *arguments in (
                (core.sequence,),
                (core.forget,),
                (core.abort,),
                (core.preempt,),
                (core.route, SMALL),
                (core.truncate, 1),
                (core.settle, 1),
            )
        ]

    def wrong_lanes(self, dice: Dice) -> list[tuple]:
        core, lane, one = self.core, dice.below(2), np.zeros(1, np.int32)
        calls = [(IndexError, "at", call, (2,)) for call in (core.plan, core.fail, core.buffers)]
        calls.append((IndexError, "at", core.commit, (-1, one)))
        flights = self.model.flights[lane]
        if not flights:
            calls.append((RuntimeError, "no plan in flight", core.fail, (lane,)))
            calls.append((RuntimeError, "no plan in flight", core.commit, (lane, one)))
        else:
            draws = sum(max(1, span.samples) for span in flights[0].spans)
            more = np.zeros(draws + 1, np.int32)
            calls.append((RuntimeError, "commit first", core.plan, (lane, len(flights) == 2)))
            calls.append((ValueError, "a token for each draw", core.commit, (lane, more)))
            calls.append((ValueError, "one dimension", core.commit, (lane, more[None])))
        return calls

    def wrong_about(self, s: SequenceModel) -> list[tuple]:
        core = self.core
        calls = [
            (ValueError, "model must be", core.route, (s.id, 2)),
            (ValueError, "model must be", core.route, (s.id, -1)),
            (ValueError, "settled must grow", core.settle, (s.id, s.settled - 1)),
            (ValueError, "settled must grow", core.settle, (s.id, s.stands + 1)),
        ]
        if not s.awaits_route:
            calls.append((RuntimeError, "does not await", core.route, (s.id, SMALL)))
        if s.phase == OVER:
            calls.append((RuntimeError, "is finished", core.truncate, (s.id, s.length)))
        else:
            calls.append((RuntimeError, "not finished", core.forget, (s.id,)))
            for length in (s.settled - 1, s.length + 1):
                calls.append((ValueError, "cannot truncate", core.truncate, (s.id, length)))
        return calls
