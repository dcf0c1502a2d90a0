"""What was computed: the executed count to the last FLOP, the useful count by stated rules."""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, mm_flop

from engine import SamplingParams
from engine.accounting.ledger import ROW_KINDS, Usage
from engine.accounting.pricing import (
    ACCOUNTINGS,
    Price,
    bytes_moved,
    pair_flops,
    useful_flops,
    weight_bytes,
)
from engine.cli import show
from engine.config import ModelConfig
from engine.replay.trace import Trace, TraceWriter
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
                usage.rows[ROLES.index(role), ROW_KINDS.index(kind)] = count
    return usage


def forced(schedule, reads):
    """Who writes from which position, as a policy."""
    return Call(lambda boundary: schedule.get(boundary.position, "small"), reads=reads)


def random_schedule(boundary):
    """About every second step is the large model's."""
    return random.Random(boundary.position).choice(ROLES)


@pytest.fixture
def plain(ring):
    """The ring pair, whose text and boundaries are known; steps end with a double newline."""
    return ring.engine(block_tokens=4, arena_tokens=1024, check_every=1, prefix_cache=False)


def usage_of(engine, prompt, tokens, policy):
    """One request's counts."""
    (done,) = engine.generate([prompt], SamplingParams(max_tokens=tokens), policy)
    return done.usage


# ---- executed


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


# ---- useful, rule by rule


@pytest.mark.parametrize("role", ROLES)
def test_rule_one_model_alone(plain, role):
    """Prompt of 2, 5 tokens: one row read, five that gave a token, and the last is never read."""
    expected = book(
        **{role: {"prompt": (1, 1), "sampled": (5, 2 + 3 + 4 + 5 + 6), "entries": (1, 1)}}
    )
    found = usage_of(plain, AB, 5, role)
    assert found.to_json() == expected.to_json() == Usage.alone(role, 2, 5).to_json()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("config", [{}, {"max_sequences": 2, "max_tick_tokens": 3}])
def test_alone_equals_what_is_booked(pair, delimiters, prompts, role, config):
    """Whatever the lengths, the batch and the cuts of the prefill."""
    engine = pair.engine(delimiters=delimiters, block_tokens=4, **config)
    for done in engine.generate(prompts(10, seed=3), SamplingParams(max_tokens=9), role):
        alone = Usage.alone(role, len(done.prompt_token_ids), len(done.token_ids))
        assert done.usage.to_json() == alone.to_json()


def test_rule_handoff_and_entries(plain):
    """c \\n\\n by small, a b c \\n\\n by large, a b c by small again.

    An entry is the prefix before the row that samples first: 1 and 7 rows on the small model,
    3 on the large one.
    """
    policy = forced({4: "large"}, reads=False)
    expected = book(
        small={
            "prompt": (1, 1), "sampled": (5, 2 + 3 + 8 + 9 + 10), "catchup": (4, 4 + 5 + 6 + 7),
            "entries": (1 + 7, 1 + 28),
        },
        large={
            "prompt": (2, 1 + 2), "catchup": (1, 3), "sampled": (4, 4 + 5 + 6 + 7),
            "entries": (3, 1 + 2 + 3),
        },
    )  # fmt: skip
    assert usage_of(plain, AB, 9, policy).to_json() == expected.to_json()


def test_rule_discarded_boundary_token(plain):
    """As above, but the small model reads: its token at position 4 is dropped, at 8 kept."""
    policy = forced({4: "large"}, reads=True)
    expected = book(
        decision_wait=3,  # it had not seen 4, 5 and 6 when 7 ended the step
        small={
            "prompt": (1, 1), "sampled": (5, 2 + 3 + 8 + 9 + 10), "discarded": (1, 4),
            "catchup": (3, 5 + 6 + 7), "entries": (1 + 7, 1 + 28),
        },
        large={
            "prompt": (2, 1 + 2), "catchup": (1, 3), "sampled": (4, 4 + 5 + 6 + 7),
            "entries": (3, 1 + 2 + 3),
        },
    )  # fmt: skip
    assert usage_of(plain, AB, 9, policy).to_json() == expected.to_json()


def test_rule_reading_is_an_entry(plain):
    """Two large steps, each read first: a server without memory would enter both models twice."""
    policy = forced({2: "large", 4: "large"}, reads=True)
    expected = book(
        decision_wait=1,
        small={
            "prompt": (1, 1), "catchup": (1, 3), "discarded": (2, 2 + 4),
            "entries": (1 + 3, 1 + 6),
        },
        large={"prompt": (1, 1), "sampled": (4, 2 + 3 + 4 + 5), "entries": (1 + 3, 1 + 6)},
    )  # fmt: skip
    assert usage_of(plain, AB, 4, policy).to_json() == expected.to_json()


def drive(engine, request, moments):
    """Step a request, calling ``moments[length]`` once when it has that many tokens."""
    while True:
        for done in engine.step():
            return done
        length = engine.scheduler.sequence(request).length
        if length in moments:
            moments.pop(length)()


def test_rule_recompute_after_preemption(plain):
    """Three rows lost at length 4 are computed again; the row that samples next is not one."""
    request = plain.submit(AB, SamplingParams(max_tokens=5), "small")
    done = drive(plain, request, {4: lambda: plain.scheduler.preempt(request)})
    expected = Usage.alone("small", 2, 5) + book(small={"recompute": (3, 1 + 2 + 3)})
    assert done.usage.to_json() == expected.to_json()


def test_rule_recompute_of_a_catch_up(plain):
    """KV of both models lost at length 6: what was there is recompute, the rest catch-up."""
    request = plain.submit(AB, SamplingParams(max_tokens=9), forced({4: "large"}, reads=False))
    done = drive(plain, request, {6: lambda: plain.scheduler.preempt(request)})
    assert done.usage.rows[0, :, 0].tolist() == [1, 4, 5, 0, 3]
    assert done.usage.rows[0, ROW_KINDS.index("recompute")].tolist() == [3, 1 + 2 + 3]
    assert done.usage.rows[1, :, 0].tolist() == [2, 1, 4, 0, 5]
    assert done.usage.rows[1, ROW_KINDS.index("recompute")].tolist() == [5, 1 + 2 + 3 + 4 + 5]
    assert done.usage.recomputed_share == pytest.approx((3 + 5) / (1 + 4 + 5 + 3 + 2 + 1 + 4 + 5))
    assert (done.usage + Usage.alone("large", 2, 26)).recomputed_share == pytest.approx(8 / 52)


def test_nothing_computed_again():
    """A share of nothing is none."""
    assert Usage().recomputed_share == Usage.alone("small", 2, 5).recomputed_share == 0.0


def test_a_trace_keeps_the_share_and_older_ones_do_without(plain, tmp_path):
    request = plain.submit(AB, SamplingParams(max_tokens=5), "small")
    done = drive(plain, request, {4: lambda: plain.scheduler.preempt(request)})
    with TraceWriter(tmp_path / "new.jsonl", plain.fingerprint, "small") as writer:
        writer.add(done)
    *first, last = map(json.loads, (tmp_path / "new.jsonl").read_text().splitlines())
    assert last.pop("recomputed_share") == done.usage.recomputed_share == 3 / 9
    older = "".join(f"{json.dumps(row)}\n" for row in (*first, last))
    (tmp_path / "old.jsonl").write_text(older)
    for name in ("new", "old"):
        (request,) = Trace.read(tmp_path / f"{name}.jsonl").requests
        assert request.usage.recomputed_share == 3 / 9


def test_the_command_shows_the_share(plain):
    """Where there is one."""
    request = plain.submit(AB, SamplingParams(max_tokens=5), "small")
    assert show(drive(plain, request, {})).endswith("large 0 sampled of 0 computed")
    request = plain.submit(AB, SamplingParams(max_tokens=5), "small")
    done = drive(plain, request, {4: lambda: plain.scheduler.preempt(request)})
    assert show(done).endswith("of 0 computed; 33.3% computed again")


def test_rule_truncated_tokens_are_discarded(plain):
    """Tokens 3 (small), 4 and 5 (large) are taken back: their rows gave dropped tokens.

    The row of the last token that stays is read again by both models.
    """
    policy = forced({4: "large"}, reads=False)
    request = plain.submit(AB, SamplingParams(max_tokens=5), policy, settle_at_once=False)
    done = drive(plain, request, {6: lambda: plain.scheduler.truncate(request, 3)})
    expected = book(
        small={"prompt": (1, 1), "sampled": (2, 2 + 3), "discarded": (1, 3), "entries": (3, 1 + 3)},
        large={
            "prompt": (2, 1 + 2), "catchup": (1, 3), "sampled": (3, 4 + 5 + 6),
            "discarded": (2, 4 + 5), "recompute": (1, 3), "entries": (6, 6 + 6),
        },
    )  # fmt: skip
    assert done.usage.to_json() == expected.to_json()


def test_rule_cascade(plain):
    """The small model's whole trace is dropped and the large one writes it anew."""
    writer = ["small"]
    policy = Call(lambda boundary: writer[0], reads=False)
    request = plain.submit(AB, SamplingParams(max_tokens=5), policy, settle_at_once=False)

    def give_up():
        writer[0] = "large"
        plain.scheduler.truncate(request, 2)

    done = drive(plain, request, {6: give_up})
    expected = Usage.alone("large", 2, 5) + book(
        small={"prompt": (1, 1), "discarded": (4, 2 + 3 + 4 + 5), "entries": (1, 1)}
    )
    assert done.usage.to_json() == expected.to_json()


@pytest.mark.parametrize("reads", [False, True])
def test_rule_keys_are_positions_plus_one(pair, delimiters, prompts, reads):
    """Each position computed once: R rows of a model attend to R (R + 1) / 2 keys."""
    engine = pair.engine(delimiters=delimiters, block_tokens=4)
    policy = Call(random_schedule, reads=reads)
    for done in engine.generate(prompts(16, seed=4), SamplingParams(max_tokens=30), policy):
        for model, role in enumerate(ROLES):
            rows, keys = done.usage.rows[model].sum(0).tolist()
            assert keys == rows * (rows + 1) // 2
            assert done.usage.count(role, "prompt") <= len(done.prompt_token_ids)
            assert done.usage.count(role, "recompute") == 0
        kept = sum(done.usage.count(role, "sampled") for role in ROLES)
        assert kept == len(done.token_ids)
        dropped = done.usage.count("small", "discarded")
        assert dropped == reads * sum(s.model == "large" for s in done.steps)


@pytest.mark.parametrize("accounting", ACCOUNTINGS)
def test_rule_the_head_counts_where_logits_are_used(accounting):
    """With a price on heads alone, each sampled or discarded row costs one, no other row any."""
    usage = book(
        large={
            "prompt": (100, 5050), "catchup": (30, 900), "sampled": (7, 70), "discarded": (4, 40),
            "recompute": (50, 99), "entries": (60, 600),
        }
    )  # fmt: skip
    assert useful_flops(usage, "large", Price(row=0, key=0, head=1), accounting) == 11
    assert useful_flops(usage, "small", Price(row=1, key=1, head=1), accounting) == 0


def test_rule_what_each_accounting_counts():
    """Rows and keys of the three columns, from one booking."""
    usage = book(
        small={
            "prompt": (10, 55), "catchup": (3, 36), "sampled": (5, 80), "discarded": (2, 30),
            "recompute": (4, 10), "entries": (20, 210),
        }
    )  # fmt: skip
    rows, keys = Price(row=1, key=0, head=0), Price(row=0, key=1, head=0)
    columns = {"decode": (7, 110), "catchup": (24, 211), "reprefill": (27, 320)}
    for accounting, expected in columns.items():
        found = [useful_flops(usage, "small", p, accounting) for p in (rows, keys)]
        assert found == list(expected)
    with pytest.raises(ValueError, match="unknown accounting 'half'"):
        useful_flops(usage, "small", rows, "half")


@pytest.mark.parametrize("reads", [False, True])
def test_accountings_are_ordered(pair, delimiters, prompts, reads):
    """Decode alone is the least; reading all again at each entry costs more than catching up."""
    engine = pair.engine(delimiters=delimiters, block_tokens=4)
    policy = Call(random_schedule, reads=reads)
    for done in engine.generate(prompts(16, seed=5), SamplingParams(max_tokens=30), policy):
        price = {a: pair_flops(done.usage, engine.shapes, a) for a in ACCOUNTINGS}
        assert price["decode"] <= price["catchup"] <= price["reprefill"]


# ---- shapes and counts


SHAPE = ModelConfig(
    vocab_size=7, hidden_size=4, intermediate_size=5, layers=3, heads=2, kv_heads=1, head_dim=2
)


def test_price_by_hand():
    """q and o 4x4, k and v 4x2, gate, up and down 4x5; two query heads of 2 per key, twice."""
    row = 2 * 3 * (16 + 8 + 8 + 16 + 3 * 20)
    assert Price.of(SHAPE) == Price(row=row, key=3 * (2 * 4 + 2 * 4), head=2 * 4 * 7)
    assert (row, Price.of(SHAPE).key, Price.of(SHAPE).head) == (648, 48, 56)


def test_price_of_a_wide_head_dim():
    """Heads need not fill the hidden size."""
    shape = ModelConfig(
        vocab_size=9, hidden_size=6, intermediate_size=1, layers=1, heads=4, kv_heads=2, head_dim=8
    )
    attention = 6 * 32 + 2 * 6 * 16 + 32 * 6
    assert Price.of(shape) == Price(row=2 * (attention + 18), key=4 * 32, head=108)


@pytest.mark.parametrize("role", ROLES)
def test_weight_bytes_equal_the_files(pair, role):
    """All parameters but the embedding; a tied head is the embedding, and is read."""
    engine = pair.engine()
    shape = engine.shapes[ROLES.index(role)]
    names = dict(pair.oracles[role].model.named_parameters())
    count = sum(p.numel() for n, p in names.items() if "embed" not in n and "lm_head" not in n)
    assert weight_bytes(shape, 4) == 4 * (count + shape.vocab_size * shape.hidden_size)


def test_bytes_moved_by_hand():
    """Weights once a tick; KV written per row and read per key: 3 layers x 2 x 2 elements."""
    usage = book(small={"prompt": (2, 3), "sampled": (1, 3)})
    found = bytes_moved(usage, (2, 0), (SHAPE, SHAPE), 2)
    assert found == {"weights": 2 * weight_bytes(SHAPE, 2), "kv": (3 + 6) * 12 * 2}


def test_usage_json_round_trip(pair, delimiters, prompts):
    """What goes out comes back; anything else is refused."""
    engine = pair.engine(delimiters=delimiters, block_tokens=4)
    for done in engine.generate(
        prompts(4, seed=6), SamplingParams(max_tokens=20), Call(random_schedule)
    ):
        again = Usage.from_json(done.usage.to_json())
        assert np.array_equal(again.rows, done.usage.rows)
        assert np.array_equal(again.entries, done.usage.entries)
        assert again.rows.dtype == again.entries.dtype == np.int64


@pytest.mark.parametrize("broken", ["rows", "entries", "model", "kind", "pair", "text"])
def test_usage_json_refuses_anything_else(broken):
    """Missing or mis-shaped parts are errors, never zeros."""
    raw = Usage.alone("large", 3, 4).to_json()
    if broken in raw:
        del raw[broken]
    elif broken == "model":
        del raw["rows"]["small"]
    elif broken == "kind":
        del raw["rows"]["large"]["catchup"]
    elif broken == "pair":
        raw["entries"] = {role: [1, 2, 3] for role in ROLES}
    else:
        raw["rows"]["large"]["catchup"] = ["many", "more"]
    with pytest.raises((KeyError, TypeError, ValueError)):
        Usage.from_json(raw)


def test_usage_adds_up():
    """Sums are sums, and leave their parts alone."""
    one, two = Usage.alone("small", 2, 3), Usage.alone("small", 2, 3)
    total = one + two
    assert np.array_equal(total.rows, 2 * two.rows)
    assert np.array_equal(total.entries, 2 * two.entries)
    assert one.to_json() == two.to_json()
