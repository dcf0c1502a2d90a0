"""Usages by hand, and policies whose steps are known."""

from __future__ import annotations

import random

from engine import SamplingParams
from engine._core import RowKind
from engine.accounting.ledger import Usage
from engine.routing.policies import Call

ROLES = ("small", "large")


AB = [2, 3]  # the ring pair goes on: c, double newline, a, b, c, double newline, ...


def book(decision_wait=0, **models):
    """A usage from ``small={kind: (rows, keys), ..., "entries": (rows, keys)}``."""
    usage = Usage(decision_wait=decision_wait)
    for role, counts in models.items():
        for kind, count in counts.items():
            if kind == "entries":
                usage.entries[ROLES.index(role)] = count
            else:
                usage.rows[ROLES.index(role), RowKind[kind]] = count
    return usage


def forced(schedule, reads):
    """Who writes from which position, as a policy."""
    return Call(lambda boundary: schedule.get(boundary.position, "small"), reads=reads)


def random_schedule(boundary):
    """About every second step is the large model's."""
    return random.Random(boundary.position).choice(ROLES)


def usage_of(engine, prompt, tokens, policy):
    """One request's counts."""
    (done,) = engine.generate([prompt], SamplingParams(max_tokens=tokens), policy)
    return done.usage
