"""The engine as it runs on a GPU (streams, graphs, pinned copies, two cards), on simulated ones.

Not a line of the engine is replaced. Kernels are, by their references, but in one test.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from itertools import cycle

import pytest
import torch

from engine import Engine, EngineConfig, SamplingParams, Verify
from engine.config import LANE_POLICIES
from engine.routing.policies import Always, Call
from engine.routing.windows import Window
from tests.card.backends import references
from tests.card.simulated import simulated_card
from tests.engine.ways import LARGE, ROLES, SAMPLED, SMALL, schedule

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="there is a GPU, no need to simulate"
)

WAYS = {
    "plain": {"graphs": "off"},
    "graphs": {},
    "ahead": {"plan_ahead": "both", "read_along": 1, "eager_backlog": 3},
    "tight": {
        "arena_tokens": 128,
        "max_context": 64,
        "eager_admission": True,
        "max_sequences": 16,
        "plan_ahead": "both",
        "max_tick_tokens": 24,
        "graph_rows": 24,
    },
    "host memory": {
        "eager_admission": True,
        "arena_tokens": 96,
        "max_context": 64,
        "max_sequences": 16,
        "plan_ahead": "both",
        "host_kv_tokens": 256,
    },
    "uneven": {"plan_ahead": "both", "max_sequences": 11, "max_tick_tokens": 90, "graph_rows": 40},
    "two cards": {"plan_ahead": "both"},
    "guesses": {"plan_ahead": "both", "speculate": 4},
    "guesses of one": {"speculate": 1},
    **{name: {"lane_policy": name} for name in LANE_POLICIES},
}
ASKED = [{"temperature": 0.0}, *SAMPLED, {"audit": "score"}]


@pytest.fixture(scope="module")
def kit(make_pair, tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp("card"), SMALL, LARGE, seed=5)


def build(kit, card, delimiters, devices=None, **config):
    """An engine; on a card what was never written is spoilt."""
    small, large = kit.folders
    settings = {
        "block_tokens": 4,
        "arena_tokens": 2048,
        "max_context": 128,
        "max_sequences": 32,
        "check_every": 1,
        "delimiters": delimiters,
        "graphs": "on",
        **config,
    }
    return Engine(
        "custom",
        small=small,
        large=large,
        dtype="float32",
        config=EngineConfig(**settings),
        **({"devices": devices} if devices else {"device": "cuda" if card else "cpu"}),
    )


@contextmanager
def on_card():
    with simulated_card(2), references():
        yield


def submit(engine, prompt, number, tokens):
    window = (Window(), Window("probe", 3))[number % 2]
    params = SamplingParams(max_tokens=tokens, seed=number, **ASKED[number % len(ASKED)])
    return engine.submit(prompt, params, Call(lambda b: schedule(b.position), window=window))


def run(engine, batch, tokens=16, doomed=()):
    """Completions of requests that arrive a few at a time; some are ended on the way."""
    waiting, ids, done, ticks = list(enumerate(batch)), [], {}, 0
    while len(done) < len(batch):
        while waiting and len(ids) - len(done) < 7:
            number, prompt = waiting.pop(0)
            ids.append(submit(engine, prompt, number, tokens))
        ticks += 1
        if ticks == 20:
            for number in doomed:
                engine.abort(ids[number])
        done |= {c.request_id: c for c in engine.step()}
    return [done[i] for i in ids]


def numbers(done):
    """Log-probabilities and scores, in their order."""
    found = [entry.logprob for entry in done.logprobs or ()]
    found += [logprob for entry in done.logprobs or () for _, logprob in entry.top]
    return found + [score for step in done.steps for pair in step.audit for score in pair]


@pytest.mark.parametrize(
    ("way", "seed"), [*zip(WAYS, cycle(range(4)), strict=False), ("tight", 0), ("graphs", 0)]
)
def test_requests_end_as_on_a_cpu(kit, way, seed, prompts, delimiters, ties):
    """Token for token, aborts in flight included, and the host waits only for ends of ticks."""
    batch, cards = prompts(12, seed=seed + 50, longest=30), None
    if way == "two cards":
        cards = ("cuda:0", "cuda:1")
    with simulated_card(seed, (0.0, 0.3, 0.6, 0.9)[seed], cards=2) as card, references():
        engine = build(kit, True, delimiters, cards, **WAYS[way])
        card.waits.clear()
        card.events = 0
        found = run(engine, batch, doomed=(1, 4))
        counts, counters = engine.graph_counts, engine.scheduler.counters()
        assert card.waits == [] and card.events <= sum(counters["ticks"])
    expected = run(build(kit, False, delimiters, **(WAYS[way] | {"speculate": 0})), batch)
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if ours.finish_reason == "abort":
            assert number in (1, 4)
            continue
        assert (ours.token_ids, ours.finish_reason) == (theirs.token_ids, theirs.finish_reason)
        assert numbers(ours) == pytest.approx(numbers(theirs), abs=1e-4)
        if number % len(ASKED) == 0:
            kit.check(ours, schedule, ties)
    assert all((counts[role].replays > 5) == (way != "plain") for role in ROLES)
    guessed = sum(done.usage.speculated.accepted for done in found)
    assert (guessed > 0) == way.startswith("guesses")
    assert way != "host memory" or counters["restored"] > 0
    assert way != "tight" or counters["preemptions"] > 0


@pytest.mark.parametrize(("seed", "ahead"), [(0, "both"), (1, "off"), (2, "small")])
def test_verified_requests_end_as_on_a_cpu(kit, prompts, delimiters, seed, ahead):
    """Which guesses stand is decided on the card: the host waits for nothing but ends of ticks."""
    batch = prompts(8, seed=seed + 70, longest=30)
    asked = [
        SamplingParams(max_tokens=24, seed=n, **ASKED[n % len(ASKED)]) for n in range(len(batch))
    ]
    policies = [Verify(mark=(0.1, 0.6)[n % 2], tokens=1 + n) for n in range(len(batch))]
    with simulated_card(seed, 0.4) as card, references():
        engine = build(kit, True, delimiters, plan_ahead=ahead)
        card.waits.clear()
        found = engine.generate(batch, asked, policies)
        assert card.waits == []
    expected = build(kit, False, delimiters).generate(batch, asked, policies)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.token_ids, ours.finish_reason) == (theirs.token_ids, theirs.finish_reason)
        assert [s.replaced for s in ours.steps] == [s.replaced for s in theirs.steps]
    by_large = [done.large_token_share for done in found]
    assert min(by_large) < 1 and max(by_large) > 0


@pytest.mark.parametrize("way", ["graphs", "tight", "host memory", "two cards", "guesses"])
def test_prompts_are_scored_as_on_a_cpu(kit, way, prompts, delimiters):
    """Among requests whose prompts are not, and the host waits for nothing but ends of ticks."""
    batch, cards = prompts(12, seed=90, longest=40), None
    if way == "two cards":
        cards = ("cuda:0", "cuda:1")
    params = [SamplingParams(max_tokens=9, prompt_logprobs=(None, 3, 0)[n % 3]) for n in range(12)]
    policies = [Always(ROLES[n % 2]) for n in range(12)]
    with simulated_card(3, 0.4, cards=2) as card, references():
        engine = build(kit, True, delimiters, cards, **WAYS[way])
        card.waits.clear()
        found = engine.generate(batch, params, policies)
        assert card.waits == []
    expected = build(kit, False, delimiters).generate(batch, params, policies)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.token_ids == theirs.token_ids
        pairs = zip(ours.prompt_logprobs or (), theirs.prompt_logprobs or (), strict=True)
        for mine, other in pairs:
            assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)
            values = [value for _, value in other.top]
            assert [value for _, value in mine.top] == pytest.approx(values, abs=1e-4)
    assert sum(done.prompt_logprobs is not None for done in found) == 8


def test_kernels_too(kit, prompts, delimiters, ties):
    """In Triton's interpreter, with the numbers that a recording has baked in."""
    with simulated_card(1) as card:
        engine = build(kit, True, delimiters)
        card.waits.clear()
        first, second, _ = run(engine, prompts(3, seed=4, longest=9), tokens=4)
        assert card.waits == [] and engine.graph_counts["small"].replays > 0
    for greedy in (first, second):
        kit.check(greedy, schedule, ties)


def test_plain_pytorch_draws_the_same_tokens(kit, prompts, delimiters):
    batch, found = prompts(6, seed=9, longest=12), []
    for card in (True, False):
        with on_card() if card else nullcontext():
            engine = build(kit, card, delimiters, fused_sampling=False, fused_head=False)
            found.append([c.token_ids for c in run(engine, batch)])
    assert found[0] == found[1]


DRAWS = {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01}
COPIES = {  # parameters, and copies to the card that a tick makes
    "greedy": ({}, 1),
    "drawn": (DRAWS, 1),
    "log-probabilities": ({**DRAWS, "logprobs": 3}, 1),
    "audited": ({**DRAWS, "audit": "score"}, 1),
    "penalised": ({**DRAWS, "repetition_penalty": 1.3, "logprobs": 1}, 2),
    "biased": ({"logit_bias": {3: 1.5}}, 2),
    "early": ({"min_tokens": 12, "stop_token_ids": (4,)}, 2),
}


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain PyTorch"])
@pytest.mark.parametrize("kind", COPIES)
def test_a_tick_makes_one_copy_to_the_card(kit, kind, fused, prompts, delimiters):
    """And one more if it changes logits; how many rows it has does not matter."""
    asked, copies = COPIES[kind]
    with simulated_card(2) as card, references():
        engine = build(kit, True, delimiters, fused_sampling=fused, plan_ahead="both")
        policy, counted = Call(lambda b: schedule(b.position)), []
        for number, prompt in enumerate(prompts(5, seed=6, longest=20)):
            engine.submit(prompt, SamplingParams(max_tokens=12, seed=number, **asked), policy)
        while engine.scheduler.running + engine.scheduler.waiting:
            before = card.uploads, sum(engine.scheduler.counters()["ticks"])
            engine.step()
            after = card.uploads, sum(engine.scheduler.counters()["ticks"])
            counted.append((after[0] - before[0], after[1] - before[1]))
    uploads, ticks = map(sum, zip(*counted, strict=True))
    assert ticks > 12
    if copies == 1:
        assert all(made == planned for made, planned in counted)
    else:  # a tick without sampled rows changes none
        assert ticks + 12 < uploads <= copies * ticks


@pytest.mark.parametrize("message", ["CUBLAS_STATUS_ALLOC_FAILED", "CUDA out of memory"])
def test_a_recording_that_breaks_off_costs_its_graph_only(
    kit, message, prompts, delimiters, monkeypatch
):
    """The size runs without one; others are recorded, though CUDA keeps the pool that broke."""
    batch = prompts(6, seed=3, longest=20)
    expected = run(build(kit, False, delimiters), batch)
    with simulated_card(3) as card, references():
        engine = build(kit, True, delimiters)
        decoder, broken, pools = engine.lanes[0].runner.decoder, [], set()
        statistics = decoder.signals

        def short(*arguments):
            if card.recording is not None:
                pools.add(card.recording.pool)
            if card.recording is not None and len(broken) < 2:
                broken.append(message)
                kind = torch.OutOfMemoryError if "CUDA" in message else RuntimeError
                raise kind(message)
            return statistics(*arguments)

        monkeypatch.setattr(decoder, "signals", short)
        found = run(engine, batch)
        counts = engine.graph_counts["small"]
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    assert counts.refused == 2 and counts.captures > 2 and counts.replays > 5
    assert len(pools) == (3 if message.startswith("CUBLAS") else 1)
