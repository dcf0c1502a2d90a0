"""The executed count, to the last FLOP."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, mm_flop

from engine import SamplingParams
from engine.accounting.ledger import Usage
from engine.accounting.pricing import Price
from engine.routing.policies import Call

from .books import ROLES, random_schedule


class Counted(FlopCounterMode):
    """The FLOPs of PyTorch's own counter, by operator and, of plain matmuls, by width."""

    def __init__(self):
        self.by_width = Counter()
        aten = torch.ops.aten
        super().__init__(display=False, custom_mapping={aten.mm: self._mm})

    def _mm(self, left, right, *rest, out_shape=None, **more):
        flops = mm_flop(left, right)
        self.by_width[right[1]] += flops
        return flops

    def terms(self, engine):
        """Linear, attention and head FLOPs; the head is the matmul as wide as the vocabulary."""
        counts = self.get_flop_counts()["Global"]
        aten = torch.ops.aten
        assert set(counts) == {aten.mm, aten.bmm}
        head = sum(self.by_width[width] for width in {s.vocab_size for s in engine.shapes})
        return counts[aten.mm] - head, counts[aten.bmm], head


def terms_of(engine, roles=ROLES):
    """What the engine itself booked, of some of its models."""
    booked = [engine.executed[role] for role in roles]
    return tuple(sum(getattr(b, t) for b in booked) for t in ("linear", "attention", "head"))


CASES = {
    "small": ("small", {}),
    "large": ("large", {}),
    "large in chunks": ("large", {"max_sequences": 4, "max_tick_tokens": 7}),
    "handoffs": (Call(random_schedule, reads=False), {}),
    "handoffs, read": (Call(random_schedule), {}),
    "handoffs, read, in chunks": (
        Call(random_schedule),
        {"max_sequences": 3, "max_tick_tokens": 9},
    ),
    "short of memory": (
        Call(random_schedule),
        {"arena_tokens": 96, "max_context": 80, "eager_admission": True},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_executed_equals_the_flop_counter(pair, delimiters, prompts, case):
    """Term by term over real passes of ragged batches, padding included; PyTorch's operators."""
    policy, config = CASES[case]
    engine = pair.engine(
        **{"delimiters": delimiters, "block_tokens": 4, "cpu_kernels": False, **config}
    )
    with Counted() as counter:
        done = engine.generate(prompts(12, seed=1), SamplingParams(max_tokens=24), policy)
    assert counter.terms(engine) == terms_of(engine)
    assert counter.get_total_flops() == sum(terms_of(engine))
    if case == "short of memory":
        assert sum(c.usage.count(r, "recompute") for c in done for r in ROLES) > 0
    else:
        # No other model's FLOPs: a model that did not run has none.
        assert (sum(terms_of(engine, ("small",))) > 0) == (not case.startswith("large"))


@pytest.mark.parametrize("case", CASES)
def test_executed_and_useful_agree_where_they_must(pair, delimiters, prompts, case):
    """Linear and head terms are the same count; padding makes attention cost more."""
    policy, config = CASES[case]
    engine = pair.engine(**{"delimiters": delimiters, "block_tokens": 4, **config})
    batch = prompts(12, seed=2)
    done = engine.generate(batch, SamplingParams(max_tokens=24), policy)
    total = sum((c.usage for c in done), Usage())
    for role, shape in zip(ROLES, engine.shapes, strict=True):
        rows, keys = total.rows[ROLES.index(role)].sum(0).tolist()
        heads = total.count(role, "sampled") + total.count(role, "discarded")
        price, booked = Price.of(shape), engine.executed[role]
        assert booked.linear == rows * price.row
        assert booked.head == heads * price.head
        assert booked.attention >= keys * price.key
