"""Guesses at the large model's tokens: what they bring, where they end, and how they go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine import Completion, Engine, EngineConfig, Speculation, SteerError
from engine._core import LARGE, SMALL
from engine.routing.names import make_policy

from .guessed_requests import DRAWN, GREEDY, LONG, PROMPTS, engine_of, what


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The embedded pair, at its defaults."""
    return engine_of(())


def total(done: list[Completion]) -> Any:
    """The counts of all."""
    usage = done[0].usage
    for each in done[1:]:
        usage += each.usage
    return usage


def test_one_seed_one_text_however_many_are_guessed(engine: Engine) -> None:
    """Beside each other, too: requests with other numbers of guesses are in the same passes."""
    (alone,) = engine.generate(PROMPTS[:1], DRAWN, "large")
    policies = ["large", *(f"speculate:{n}" for n in range(8)), "speculate:15", "speculate:3:both"]
    for done in engine.generate(PROMPTS[:1] * len(policies), DRAWN, policies):
        assert done.token_ids == alone.token_ids


def test_a_pass_writes_several_tokens(engine: Engine) -> None:
    plain = engine.generate(PROMPTS, GREEDY, "large")
    before = engine.scheduler.counters()["ticks"]
    usage = total(engine.generate(PROMPTS, GREEDY, "speculate"))
    ticks = [b - a for a, b in zip(before, engine.scheduler.counters()["ticks"], strict=True)]
    counts = usage.speculated
    assert counts.tokens == sum(len(done.token_ids) for done in plain)
    assert counts.tokens_per_pass > 2 and counts.acceptance > 0.6
    assert ticks[LARGE] < max(len(done.token_ids) for done in plain)
    assert usage.count("small", "drafted") == counts.accepted
    assert usage.rows[SMALL].sum() > 0 and total(plain).rows[SMALL].sum() == 0


def test_tokens_a_pass_are_not_counted_after_the_end(engine: Engine) -> None:
    """Right guesses after an end of text are neither text nor accepted."""
    params = replace(LONG, stop=("\n\n",))
    for done in engine.generate(PROMPTS, params, "speculate:15"):
        counts = done.usage.speculated
        assert counts.tokens == len(done.token_ids) <= counts.passes + counts.accepted


@pytest.mark.parametrize(
    "policy",
    ["threshold:max_prob:0.999@probe:8", "cascade:max_prob:0.9999", "judge:-1", "audit:-1"],
)
def test_what_was_taken_back_is_the_first_guess(engine: Engine, policy: str) -> None:
    """A probe, a whole answer, a step that an audit rolled back."""
    counts = total(engine.generate(PROMPTS, GREEDY, f"{policy}+speculate")).speculated
    assert counts.reused > 0 and counts.accepted > 0


def test_guesses_that_are_looked_up(engine: Engine) -> None:
    """A text that repeats itself needs no small model."""
    params = replace(LONG, logit_bias={5: 60.0})
    plain = engine.generate(PROMPTS, params, "large")
    looked = engine.generate(PROMPTS, params, "speculate:7:lookup")
    usage = total(looked)
    assert [d.token_ids for d in looked] == [d.token_ids for d in plain]
    assert usage.rows[SMALL].sum() == usage.speculated.drafted == 0
    assert usage.speculated.looked_up > 0 and usage.speculated.tokens_per_pass > 3


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 16])
def test_the_limit_falls_within_a_run(engine: Engine, tokens: int) -> None:
    params = replace(GREEDY, max_tokens=tokens, ignore_eos=True)
    plain, guessed = (engine.generate(PROMPTS, params, p) for p in ("large", "speculate:7"))
    assert [d.token_ids for d in guessed] == [d.token_ids for d in plain]
    assert all(len(d.token_ids) == tokens for d in guessed)


def test_a_prompt_that_fills_the_context(engine: Engine) -> None:
    """No row of a guess lies past the context."""
    for room in (1, 2, 4):
        prompt = engine.tokenizer.encode("1+2" * engine.max_context)[: engine.max_context - room]
        params = replace(GREEDY, max_tokens=room, ignore_eos=True)
        plain, guessed = (engine.generate([prompt], params, p) for p in ("large", "speculate:7"))
        assert guessed[0].token_ids == plain[0].token_ids


def test_acceptance_is_the_same_after_a_pause(engine: Engine) -> None:
    """Keys of rows that were dropped, or never computed, are attended to by none: guesses would
    go wrong without any error."""
    params = replace(LONG, max_tokens=60)

    def run(preempt: bool) -> Any:
        request = engine.submit(PROMPTS[0], params, "speculate:3")
        for tick in range(10_000):
            done = engine.step()
            if done:
                return done[0]
            if preempt and tick % 7 == 5:
                engine.scheduler.preempt(request)
        raise AssertionError("it never ended")

    whole, broken = run(False), run(True)
    assert broken.token_ids == whole.token_ids
    assert broken.usage.recomputed_share > 0
    one, other = (done.usage.speculated for done in (whole, broken))
    assert other.acceptance > one.acceptance - 0.1 and other.accepted > 10


def test_aborts_leave_nothing(engine: Engine) -> None:
    """In each phase of a round."""
    phases = set()
    for ticks in range(1, 12):
        requests = [engine.submit(p, LONG, "speculate:3") for p in PROMPTS]
        for _ in range(ticks):
            engine.step()
        view = engine.scheduler.view(requests[0])
        phases.add((view.drafting, bool(view.draft)))
        for request in requests:
            engine.abort(request)
        ended = [done for _ in range(50) for done in engine.step()]
        assert [done.finish_reason for done in ended] == ["abort"] * len(requests)
        engine.scheduler.check_integrity()
    assert len(phases) > 1


class Unusable:
    """Makes a model's logits unusable in one of its passes with several draws, or in any."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, engine: Engine, model: int, rows: int):
        self.left, self.rows = 3, rows
        decoder = engine.lanes[model].runner.decoder
        self._signals = decoder.signals
        monkeypatch.setattr(decoder, "signals", self)

    def __call__(self, batch: Any, *rest: Any) -> Any:
        confidence, logits = self._signals(batch, *rest)
        if len(batch.sampled) >= self.rows:
            self.left -= 1
            if self.left == 0:
                confidence = confidence._replace(valid=torch.zeros_like(confidence.valid))
        return confidence, logits


def test_unusable_guesses_end_no_request(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    (plain,) = engine.generate(PROMPTS[:1], GREEDY, "large")
    Unusable(monkeypatch, engine, SMALL, 1)
    (done,) = engine.generate(PROMPTS[:1], GREEDY, "speculate")
    assert what(done) == what(plain)
    assert done.usage.speculated.rounds < plain.usage.count("large", "sampled") // 4


def test_unusable_verified_rows_end_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the tokens that were accepted before."""
    (plain,) = engine.generate(PROMPTS[:1], GREEDY, "large")
    Unusable(monkeypatch, engine, LARGE, 2)
    (done,) = engine.generate(PROMPTS[:1], GREEDY, "speculate")
    assert done.finish_reason == "error" and done.token_ids
    assert plain.token_ids[: len(done.token_ids)] == done.token_ids


def test_off_unless_asked_for() -> None:
    """And a policy's own number goes before the engine's."""
    engine = Engine("tiny", config=EngineConfig(speculate=3))
    ways: Iterator[tuple[str, int]] = iter(
        (("large", 3), ("large+speculate:0", 0), ("steer+speculate:2", 2), ("speculate", 4))
    )
    for policy, most in ways:
        counts = total(engine.generate(PROMPTS, LONG, policy)).speculated
        assert len(counts.accepted_at) == most
    plain = total(engine_of(()).generate(PROMPTS, LONG, "large"))
    assert plain.speculated.rounds == 0 and "speculated" not in plain.to_json()


@pytest.mark.parametrize(("rows", "most"), [(2, 0), (5, 3)])
def test_a_tick_draws_from_so_many_rows(engine: Engine, rows: int, most: int) -> None:
    """Two requests that run leave the rest for guesses; the text is the same."""
    few = Engine("tiny", config=EngineConfig(max_sequences=2, max_drawn_rows=rows, check_every=1))
    plain, guessed = (e.generate(PROMPTS, LONG, "speculate:7") for e in (engine, few))
    assert [d.token_ids for d in guessed] == [d.token_ids for d in plain]
    # The last request runs alone for a while.
    assert most <= len(total(guessed).speculated.accepted_at) <= most + 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("speculate:x", "whole number K, got 'x'"),
        ("speculate:16", "from 0 (off) to 15; got 16"),
        ("speculate:4:mid", "one of small, lookup, both; got 'mid'"),
        ("speculate:4:small:5", "expected speculate[:K[:SOURCE]]"),
        ("large+speculate:2+speculate:3", "speculate"),
        ("speculate+speculate", "twice"),
        ("random:0.5+guess", "expected random:SHARE"),
    ],
)
def test_bad_names(name: str, expected: str) -> None:
    with pytest.raises(SteerError) as error:
        make_policy(name)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_names_of_policies() -> None:
    assert make_policy("speculate").name == "speculate"
    assert make_policy("random:0.5+speculate:2").name == "random+speculate"
    assert Speculation.parse("speculate:7:both") == Speculation(7, "both")
    with pytest.raises(SteerError, match="speculate must be from 0"):
        EngineConfig(speculate=99)
    with pytest.raises(SteerError, match=r"max_drawn_rows must be 0 or at least max_sequences \(8"):
        EngineConfig(max_sequences=8, max_drawn_rows=3)
    with pytest.raises(SteerError, match="draft_source must be one of small, lookup, both"):
        EngineConfig(draft_source="none")
