"""The useful count, rule by rule."""

from __future__ import annotations

import json

import pytest

from engine import SamplingParams
from engine._core import RowKind
from engine.accounting.ledger import Usage
from engine.accounting.pricing import ACCOUNTINGS, Price, pair_flops, useful_flops
from engine.cli import show
from engine.replay.trace import Trace, TraceWriter
from engine.routing.policies import Call

from .books import AB, ROLES, book, forced, random_schedule, usage_of


@pytest.fixture
def plain(ring):
    """The ring pair, whose text and boundaries are known; steps end with a double newline."""
    return ring.engine(block_tokens=4, arena_tokens=1024, check_every=1, prefix_cache=False)


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
            "prompt": (1, 1),
            "sampled": (5, 2 + 3 + 8 + 9 + 10),
            "catchup": (4, 4 + 5 + 6 + 7),
            "entries": (1 + 7, 1 + 28),
        },
        large={
            "prompt": (2, 1 + 2),
            "catchup": (1, 3),
            "sampled": (4, 4 + 5 + 6 + 7),
            "entries": (3, 1 + 2 + 3),
        },
    )
    assert usage_of(plain, AB, 9, policy).to_json() == expected.to_json()


def test_rule_discarded_boundary_token(plain):
    """As above, but the small model reads: its token at position 4 is dropped, at 8 kept."""
    policy = forced({4: "large"}, reads=True)
    expected = book(
        decision_wait=3,  # it had not seen 4, 5 and 6 when 7 ended the step
        small={
            "prompt": (1, 1),
            "sampled": (5, 2 + 3 + 8 + 9 + 10),
            "discarded": (1, 4),
            "catchup": (3, 5 + 6 + 7),
            "entries": (1 + 7, 1 + 28),
        },
        large={
            "prompt": (2, 1 + 2),
            "catchup": (1, 3),
            "sampled": (4, 4 + 5 + 6 + 7),
            "entries": (3, 1 + 2 + 3),
        },
    )
    assert usage_of(plain, AB, 9, policy).to_json() == expected.to_json()


def test_rule_reading_is_an_entry(plain):
    """Two large steps, each read first: a server without memory would enter both models twice."""
    policy = forced({2: "large", 4: "large"}, reads=True)
    expected = book(
        decision_wait=1,
        small={
            "prompt": (1, 1),
            "catchup": (1, 3),
            "discarded": (2, 2 + 4),
            "entries": (1 + 3, 1 + 6),
        },
        large={"prompt": (1, 1), "sampled": (4, 2 + 3 + 4 + 5), "entries": (1 + 3, 1 + 6)},
    )
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
    assert done.usage.rows[0, :, 0].tolist() == [1, 4, 5, 0, 3, 0, 0]
    assert done.usage.rows[0, RowKind.recompute].tolist() == [3, 1 + 2 + 3]
    assert done.usage.rows[1, :, 0].tolist() == [2, 1, 4, 0, 5, 0, 0]
    assert done.usage.rows[1, RowKind.recompute].tolist() == [5, 1 + 2 + 3 + 4 + 5]
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
            "prompt": (2, 1 + 2),
            "catchup": (1, 3),
            "sampled": (3, 4 + 5 + 6),
            "discarded": (2, 4 + 5),
            "recompute": (1, 3),
            "entries": (6, 6 + 6),
        },
    )
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
            "prompt": (100, 5050),
            "catchup": (30, 900),
            "sampled": (7, 70),
            "discarded": (4, 40),
            "recompute": (50, 99),
            "entries": (60, 600),
        }
    )
    assert useful_flops(usage, "large", Price(row=0, key=0, head=1), accounting) == 11
    assert useful_flops(usage, "small", Price(row=1, key=1, head=1), accounting) == 0


def test_rule_what_each_accounting_counts():
    """Rows and keys of the three columns, from one booking."""
    usage = book(
        small={
            "prompt": (10, 55),
            "catchup": (3, 36),
            "sampled": (5, 80),
            "discarded": (2, 30),
            "recompute": (4, 10),
            "entries": (20, 210),
        }
    )
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
