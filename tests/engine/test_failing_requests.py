"""Requests that fail, are aborted or cut short, and the others that go on."""

from __future__ import annotations

import gc
import secrets

import pytest

from engine import Completion, Decision, Engine, SamplingParams, SteerError
from tests.engine.tiny_requests import PARAMS, PROMPTS


def test_a_forward_pass_that_fails_is_run_again(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    """An interrupt in the middle of a tick loses nothing: the plan is still in flight."""
    expected = [c.text for c in engine.generate(PROMPTS, PARAMS, "small")]
    ids = [engine.submit(p, PARAMS, "small") for p in PROMPTS]
    decoder = engine.lanes[0].runner.decoder
    statistics, calls = decoder.signals, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return statistics(*arguments)

    monkeypatch.setattr(decoder, "signals", interrupted)
    found, interrupts = {}, 0
    while len(found) < len(ids):
        try:
            found |= {c.request_id: c.text for c in engine.step()}
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts == 1 and [found[i] for i in ids] == expected


def test_a_forward_pass_that_fails_for_good_ends_its_requests(engine: Engine, monkeypatch):
    """Twice the same error: these requests end with it, the engine serves the next ones."""
    decoder = engine.lanes[0].runner.decoder
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "signals", lambda *_: 1 / 0)
        request = engine.submit(PROMPTS[0], PARAMS, "small")
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                engine.step()
        (done,) = engine.step()
    assert (done.request_id, done.finish_reason) == (request, "error")
    assert engine.generate(PROMPTS[:1], PARAMS, "small")[0].finish_reason == "stop"


class Answers:
    """A policy object whose answer is whatever it was given."""

    reads = False
    name = "answers"

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def decide(self, boundary):
        return self.answer


@pytest.mark.parametrize("answer", ["large", Decision("medium", ""), None])
def test_a_policy_object_that_answers_nonsense(engine: Engine, answer: object):
    """Its request ends, others go on."""
    good = engine.submit(PROMPTS[0], PARAMS, "small")
    bad = engine.submit(PROMPTS[1], PARAMS, Answers(answer))
    with pytest.raises(SteerError, match="a policy must answer"):
        engine.step()
    found = {}
    while len(found) < 2:
        found |= {c.request_id: c.finish_reason for c in engine.step()}
    assert found == {good: "stop", bad: "abort"}


def test_a_policy_may_end_its_own_request(engine: Engine):
    def end(boundary):
        engine.abort(boundary.request)
        return "small"

    assert engine.generate(PROMPTS[:1], PARAMS, end)[0].finish_reason == "abort"


def test_aborting_what_is_finished_does_nothing(engine: Engine):
    request = engine.submit(PROMPTS[0], SamplingParams(max_tokens=1), "small")
    engine.generate(PROMPTS[1:2], PARAMS, "small")
    engine.abort(request)
    assert [c.finish_reason for c in engine.step()] == ["length"]


def completions() -> int:
    """How many are alive, whatever holds them."""
    gc.collect()
    return sum(type(each) is Completion for each in gc.get_objects())


def test_errors_of_others_neither_leak_nor_mask(engine: Engine):
    """generate() raises the first error; nothing of its requests stays behind."""

    def first(boundary):
        raise ZeroDivisionError

    def second(boundary):
        raise KeyError

    before = completions()
    ids = [engine.submit(PROMPTS[0], PARAMS, policy) for policy in (first, second)]
    with pytest.raises(ZeroDivisionError):
        engine.generate(PROMPTS[:2], PARAMS, "large")
    found = []
    while len(found) < 2:
        try:
            found += engine.step()
        except KeyError:
            continue
    assert {c.finish_reason for c in found} == {"abort"}
    assert completions() - before == len(found)  # none of generate() is kept
    following = engine.submit(PROMPTS[0], PARAMS, "small")
    assert following == max(ids) + 3
    assert [engine.is_live(i) for i in range(following + 1)] == [False] * following + [True]


def test_a_request_cut_short_while_it_is_queued(engine: Engine, monkeypatch):
    """An interrupt after the core has queued it, here as the system is asked for a seed, leaves an
    orphan that ends by itself."""

    def interrupted(bits: int) -> int:
        assert engine.scheduler.waiting == 1
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(secrets, "randbits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.submit(PROMPTS[0], PARAMS, "threshold:max_prob:0.9")
    assert engine.generate(PROMPTS[:2], PARAMS, "small")[1].finish_reason == "stop"
    assert engine.scheduler.running == engine.scheduler.waiting == 0
