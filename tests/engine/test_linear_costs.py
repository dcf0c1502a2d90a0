"""The cost of an answer is linear in its length, shown by counts; and no boundary costs more than
the one before it."""

from __future__ import annotations

import math
import random
import struct

import pytest

from engine import SamplingParams, _core
from engine._core import LARGE, SMALL, Phase
from engine.config import TINY
from engine.requests.audit_log import AuditLog
from engine.requests.request_state import RequestState
from engine.routing.policies import Call
from engine.routing.policy import Boundary, Decision
from engine.text.tokenizer import Tokenizer
from tests.engine.ways import schedule

LENGTHS = (40, 80, 160)
TOKENIZER = Tokenizer(TINY / "small")


@pytest.fixture
def copied(monkeypatch):
    """Counts the numbers that are copied out of the core."""
    counts = dict.fromkeys(("sequence", "tokens_since", "steps_since", "news"), 0)
    sizes = {
        "sequence": lambda s: s.length + len(s.steps) + len(s.forced),
        "news": lambda n: len(n.tokens) + len(n.steps),
    }

    def counting(name):
        call, size = getattr(_core.Scheduler, name), sizes.get(name, len)

        def counted(*arguments):
            result = call(*arguments)
            counts[name] += 1 + size(result)
            return result

        return counted

    for name in counts:
        monkeypatch.setattr(_core.Scheduler, name, counting(name))
    return counts


def engine_of(pair, delimiters):
    return pair.engine(
        delimiters=delimiters, block_tokens=4, arena_tokens=8192, max_context=256, check_every=0
    )


def is_linear(costs, slack=1.5):
    """Costs of answers each twice as long as the one before."""
    rates = [cost / length for cost, length in zip(costs, LENGTHS, strict=True)]
    return max(rates) <= slack * rates[0]


ASKED = {
    "penalised": {"repetition_penalty": 1.3, "frequency_penalty": 0.2},
    "audited": {"audit": "rollback:min:-99"},
    "audited, never settled": {"audit": "rollback:min:-99", "stop": ("no such text",)},
    "rolled back": {"audit": "rollback:min:-3.3"},
}


@pytest.mark.parametrize("asked", ASKED)
def test_what_an_answer_copies_is_linear(pair, delimiters, prompts, copied, monkeypatch, asked):
    """And so are the tokens that an audit judges."""
    judged, pairs = [0], AuditLog.pairs

    def counted(log, first, last, small):
        judged[0] += last - first
        return pairs(log, first, last, small)

    monkeypatch.setattr(AuditLog, "pairs", counted)
    policy = Call(lambda b: schedule(b.position), reads=True)
    costs, looks, steps = [], [], 0
    for length in LENGTHS:
        engine = engine_of(pair, delimiters)
        copied |= dict.fromkeys(copied, 0)
        judged[0] = 0
        params = SamplingParams(max_tokens=length, ignore_eos=True, **ASKED[asked])
        answers = engine.generate(prompts(6, seed=3), params, policy)
        assert all(len(c.token_ids) == length for c in answers)
        assert asked != "rolled back" or sum(len(c.retracted) for c in answers) > length / 10
        steps = sum(len(c.steps) for c in answers)
        costs.append(sum(copied.values()))
        looks.append(judged[0])
    assert steps > 100
    assert is_linear(costs) and is_linear([max(1, count) for count in looks])
    assert copied["sequence"] <= 6 * (400 + 2)  # once a request, at its end


def test_what_a_stream_copies_is_linear(pair, delimiters, prompts, copied):
    costs = []
    policy = Call(lambda b: schedule(b.position))
    for length in LENGTHS:
        engine = engine_of(pair, delimiters)
        copied |= dict.fromkeys(copied, 0)
        params = SamplingParams(max_tokens=length, ignore_eos=True)
        *_, last = engine.stream(prompts(1, seed=4)[0], params, policy)
        assert len(last.completion.token_ids) == length
        assert copied["news"] >= length
        costs.append(sum(copied.values()))
    assert is_linear(costs)


class CountedRisk(float):
    """Counts how often it is used."""

    uses = 0

    def __rsub__(self, other):
        CountedRisk.uses += 1
        return other - float(self)


def test_a_boundary_costs_what_the_one_before_cost(pair, delimiters, prompts, copied):
    """Each step is copied once or twice, and each decision's risk is used once."""
    CountedRisk.uses, work, last = 0, [], [0]

    def decide(boundary):
        now = copied["steps_since"] + copied["tokens_since"] + copied["sequence"]
        work.append(now - last[0])
        last[0] = now
        return Decision(schedule(boundary.position), "by place", risk=CountedRisk(0.01))

    engine = engine_of(pair, delimiters)
    params = SamplingParams(max_tokens=200, ignore_eos=True)
    (done,) = engine.generate(prompts(1, seed=5), params, Call(decide, reads=True))
    assert len(work) > 30 and max(work) <= 2 < len(done.steps)
    assert CountedRisk.uses == len(work)


class Text:
    """One sequence of the core whose tokens are random, cut at random places."""

    DELIMITER = 3

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.core = _core.Scheduler(
            slabs=64, slots=(4, 4), block_tokens=4, max_context=256, max_sequences=2,
            max_tick_tokens=300, delimiters=[b"\n\n"], token_bytes=[b"a", b"b", b"c", b"\n\n"],
        )  # fmt: skip
        self.id = self.core.add([0, 1, 2], max_tokens=200, settle_at_once=False, reader=SMALL)
        self.cuts = 0

    def tick(self):
        """Both lanes once; perhaps a cut, with a batch in flight or without."""
        for lane in (SMALL, LARGE):
            if not self.core.plan(lane):
                continue
            if self.random.random() < 0.04:
                self.cut()
            token = self.random.choice((0, 1, 2, self.DELIMITER))
            self.core.commit(lane, [token])
        if self.random.random() < 0.04:
            self.cut()

    def cut(self):
        sequence = self.core.view(self.id)
        if (
            self.cuts < 30
            and sequence.phase == Phase.running
            and sequence.length > sequence.settled
        ):
            least = max(sequence.settled, sequence.length - 40)
            self.core.truncate(self.id, self.random.randint(least, sequence.length - 1))
            self.cuts += 1


def old_facts(sequence, decisions):
    """As boundaries were computed: from all steps and all decisions, from the first one on."""
    position = sequence.length
    steps = [step for step in sequence.steps if step[0] < position]
    ends = [start for start, _ in steps[1:]] + [position] * bool(steps)
    lengths = [end - start for (start, _), end in zip(steps, ends, strict=True)]
    return {
        "step": len(steps),
        "position": position,
        "previous": ("small", "large")[steps[-1][1]] if steps else None,
        "large_tokens": sum(
            n for (_, model), n in zip(steps, lengths, strict=True) if model == LARGE
        ),
        "risk": 1 - math.prod(1 - d.risk for p, d in decisions.items() if p < position),
    }


def bits(number):
    return struct.pack("d", number)


@pytest.mark.parametrize("seed", range(12))
def test_facts_are_the_old_ones_after_truncations(seed):
    """To the bit, risk's product included; and a history is the text, whenever it is read."""
    text, decisions, seen = Text(seed), {}, 0
    state = RequestState(SamplingParams(), 0, Call(lambda _: decision, reads=True), 3)
    while text.core.view(text.id).phase != Phase.finished:
        for event in text.core.take_events():
            sequence = text.core.view(text.id)
            if not sequence.awaits_route:
                continue
            assert event.row >= 0
            boundary: Boundary = state.boundary(text.core, sequence, None, TOKENIZER)
            for name, value in old_facts(text.core.sequence(text.id), decisions).items():
                assert getattr(boundary, name) == value, name
                assert name != "risk" or bits(boundary.risk) == bits(value)
            role, risk = text.random.choice(("small", "large")), text.random.random() / 7
            decision = Decision(role, "by lot", risk=risk)
            state.decide(boundary, lambda: 0)
            decisions = {p: d for p, d in decisions.items() if p < boundary.position}
            decisions[boundary.position] = decision
            seen += 1
            text.core.route(text.id, ("small", "large").index(role))
        text.tick()
        if text.random.random() < 0.3:
            history = state.history.follow(text.core, text.id)
            assert history.tolist() == text.core.sequence(text.id).tokens.tolist()
    assert seen > 40 and text.cuts > 5
