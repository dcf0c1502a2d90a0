"""Stops, limits, deadlines, streaming, and requests that live side by side."""

from __future__ import annotations

import weakref
from typing import ClassVar

import pytest

from engine import (
    Engine,
    EngineConfig,
    Query,
    QueueFullError,
    SamplingParams,
    SteerError,
    Threshold,
)
from tests.engine.tiny_requests import PARAMS, PROMPTS


def test_a_stop_string_cuts_the_text(engine: Engine):
    plain = engine.generate(PROMPTS, PARAMS, "small")
    for prompt, whole in zip(PROMPTS, plain, strict=True):
        stop = whole.text[9:12]
        params = SamplingParams(max_tokens=80, stop=(stop,))
        (cut,) = engine.generate([prompt], params, "small")
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert cut.finish_reason == "stop"
        assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]


def test_ignore_eos_goes_on(engine: Engine):
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    (done,) = engine.generate(PROMPTS[:1], params, "small")
    assert done.finish_reason == "length" and len(done.token_ids) == 100


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_min_tokens_keeps_stops_from_being_sampled(engine: Engine, temperature: float):
    (plain,) = engine.generate(PROMPTS[:1], PARAMS, "small")
    least = len(plain.token_ids) + 5
    params = SamplingParams(max_tokens=90, min_tokens=least, temperature=temperature, seed=3)
    (done,) = engine.generate(PROMPTS[:1], params, "small")
    eos = engine.shapes[0].eos_ids[0]
    assert eos not in done.token_ids[:least] and len(done.token_ids) >= least


def test_steps_of_at_most_three_tokens(engine: Engine):
    params = SamplingParams(max_tokens=80, max_step_tokens=3)
    (done,) = engine.generate(PROMPTS[:1], params, "threshold:max_prob:0.5")
    assert max(len(s.token_ids) for s in done.steps) <= 3
    assert all(s.signals is not None for s in done.steps)


def test_a_query_decides_once(engine: Engine):
    policy = Query(Threshold("max_prob", 0.9))
    for done in engine.generate(PROMPTS, PARAMS, policy):
        assert len({s.model for s in done.steps}) == 1 and len(done.steps) > 2
        assert done.steps[0].signals is not None
        assert all(s.signals is None for s in done.steps[1:])
        small, large = done.usage.rows[:, :, 0].sum(1)
        assert small == len(done.prompt_token_ids) if large else small > 0


def test_policies_by_name(engine: Engine):
    for name in ("entropy", "entropy:0.5", "query", "query:max_prob:0.5"):
        (done,) = engine.generate(PROMPTS[:1], PARAMS, name)
        assert done.finish_reason == "stop", name
    with pytest.raises(SteerError, match="expected entropy:VALUE"):
        engine.generate(PROMPTS[:1], PARAMS, "entropy:max_prob:1")
    with pytest.raises(SteerError, match="must be a finite number"):
        engine.generate(PROMPTS[:1], PARAMS, "threshold:max_prob:nan")


def test_a_deadline_ends_a_request(engine: Engine):
    late = engine.submit(PROMPTS[0], PARAMS, "small", timeout=1e-9)
    fine = engine.submit(PROMPTS[1], PARAMS, "small", timeout=600)
    found = {}
    while len(found) < 2:
        found |= {c.request_id: c.finish_reason for c in engine.step()}
    assert found == {late: "deadline", fine: "stop"}


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_deadline_in_the_past_is_refused(engine: Engine, timeout: float):
    with pytest.raises(SteerError, match="timeout must be more than 0 seconds"):
        engine.submit(PROMPTS[0], PARAMS, "small", timeout=timeout)


def test_a_full_queue_refuses_loudly_and_generate_waits():
    engine = Engine("tiny", config=EngineConfig(max_sequences=2, max_tick_tokens=64, max_waiting=3))
    for _ in range(3):
        engine.submit(PROMPTS[0], PARAMS, "small")
    with pytest.raises(QueueFullError, match="the queue is full: 3 requests wait"):
        engine.submit(PROMPTS[0], PARAMS, "small")
    texts = [c.text for c in engine.generate(PROMPTS, PARAMS, "small")]
    assert texts == [c.text for c in Engine("tiny").generate(PROMPTS, PARAMS, "small")]


def test_generate_leaves_submitted_requests_their_completions(engine: Engine):
    """They may finish while generate() runs; step() still returns them."""
    early = engine.submit(PROMPTS[0], PARAMS, "small")
    for _ in range(20):
        engine.generate(PROMPTS[1:4] * 3, PARAMS, "large")
        if not engine.is_live(early):
            break
    assert [c.request_id for c in engine.step()] == [early]


def test_a_stream_joins_to_the_text(engine: Engine):
    for prompt in PROMPTS[:4]:
        events = list(engine.stream(prompt, PARAMS, "threshold:max_prob:0.9"))
        completion = events[-1].completion
        assert completion is not None and [e.kind for e in events].count("done") == 1
        assert "".join(e.text for e in events) == completion.text
        steps = [e.model for e in events if e.kind == "step"]
        assert steps == [s.model for s in completion.steps]
        assert len([e for e in events if e.kind == "text"]) > 5


def test_a_stream_holds_a_stop_string_back(engine: Engine):
    (whole,) = engine.generate(PROMPTS[:1], PARAMS, "small")
    stop = whole.text[9:12]
    params = SamplingParams(max_tokens=80, stop=(stop,))
    events = list(engine.stream(PROMPTS[0], params, "small"))
    assert "".join(e.text for e in events) == whole.text[: whole.text.index(stop)]


def test_streams_and_other_requests_live_side_by_side(engine: Engine):
    """Two streams in turn, a submitted request and a generate() in between."""
    expected = [c.text for c in engine.generate(PROMPTS[:4], PARAMS, "small")]
    submitted = engine.submit(PROMPTS[2], PARAMS, "small")
    streams = [engine.stream(p, PARAMS, "small") for p in PROMPTS[:2]]
    texts = [next(streams[0]).text, next(streams[1]).text]
    assert engine.generate([PROMPTS[3]], PARAMS, "small")[0].text == expected[3]
    for i, stream in enumerate(streams):
        texts[i] += "".join(e.text for e in stream)
    assert texts == expected[:2]
    assert [c.request_id for c in engine.step()] == [submitted]


def test_a_stream_that_is_closed_ends_its_request(engine: Engine):
    stream = engine.stream(PROMPTS[0], PARAMS, "small")
    next(stream)
    stream.close()
    engine.scheduler.check_integrity()
    assert engine.scheduler.running == 0
    assert engine.generate(PROMPTS[:1], PARAMS, "small")[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop", ("",)),
        ("stop", ("a", 3)),
        ("min_tokens", -1),
        ("min_tokens", 500),
        ("max_step_tokens", -1),
    ],
)
def test_bad_parameters(field: str, value: object):
    with pytest.raises(SteerError, match=field):
        SamplingParams(**{field: value})


def test_a_stop_token_is_cut_from_the_text(engine: Engine):
    (plain,) = engine.generate(PROMPTS[:1], PARAMS, "small")
    digit = plain.token_ids[2]
    params = SamplingParams(max_tokens=80, stop_token_ids=(digit,))
    (done,) = engine.generate(PROMPTS[:1], params, "small")
    assert done.text == plain.text[: plain.token_ids.index(digit)]
    events = list(engine.stream(PROMPTS[0], params, "small"))
    assert "".join(e.text for e in events) == done.text


def test_nan_weights_do_not_outlive_their_repair(engine: Engine):
    """What bad weights computed is in no cache."""
    small = Engine("tiny", config=EngineConfig(block_tokens=4, check_every=1))
    decoder = small.lanes[0].runner.decoder
    good = decoder.embedding.clone()
    decoder.embedding.fill_(float("nan"))
    (done,) = small.generate(PROMPTS[:1], PARAMS, "small")
    assert done.finish_reason == "error" and done.error and "logits" in done.error
    decoder.embedding.copy_(good)
    assert small.generate(PROMPTS[:1], PARAMS, "small")[0].finish_reason == "stop"


def test_stop_tokens_that_do_not_exist_are_refused(engine: Engine):
    params = SamplingParams(max_tokens=8, min_tokens=1, stop_token_ids=(500,))
    with pytest.raises(SteerError, match=r"token id 500 is not in 0\.\.\d+$"):
        engine.generate(PROMPTS[:1], params, "small")


class Seconds(float):
    """Its sums with other numbers are of its kind, so that those that are kept can be counted."""

    sums: ClassVar[weakref.WeakSet[Seconds]] = weakref.WeakSet()
    made = 0

    __hash__ = object.__hash__  # each of its own

    def __eq__(self, other: object) -> bool:
        return self is other

    def __radd__(self, other: float) -> Seconds:
        total = Seconds(other + float(self))
        self.sums.add(total)
        Seconds.made += 1
        return total


def test_met_deadlines_are_forgotten(engine: Engine):
    for _ in range(60):
        engine.generate(PROMPTS[:1], SamplingParams(max_tokens=1), "small", timeout=Seconds(86400))
    assert Seconds.made == 60 and len(Seconds.sums) <= 20


def test_a_trace_that_cannot_be_written_is_refused_first(engine: Engine, tmp_path):
    with pytest.raises(SteerError, match="no such folder"):
        engine.generate(PROMPTS[:1], PARAMS, "small", trace=tmp_path / "nowhere" / "t.jsonl")
