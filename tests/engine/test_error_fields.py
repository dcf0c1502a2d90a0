"""Errors name the parameter at fault, as a server has to tell it to its clients."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from engine import (
    ContextLengthError,
    Engine,
    EngineConfig,
    Prompt,
    QueueFullError,
    SamplingParams,
    SteerError,
)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("tiny", config=EngineConfig(max_waiting=4))


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": "x"}, "seed"),
        ({"seed": -1}, "seed"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": "\ud800"}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logit_bias": {1: 101}}, "logit_bias"),
        ({"logit_bias": 3}, "logit_bias"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"include_stop": 1}, "include_stop"),
        ({"think_end": 3}, "think_end"),
        ({"audit": 3}, "audit"),
        ({"audit": "perhaps"}, "audit"),
    ],
)
def test_fields_of_parameters(values: dict[str, Any], field: str):
    with pytest.raises(SteerError) as raised:
        SamplingParams(**values)
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("prompt", "given", "field"),
    [
        ("", {}, "prompt"),
        (5, {}, "prompt"),
        ([5, 10**6], {}, "prompt"),
        (Prompt((1,), (1,)), {}, "prompt"),
        ("é", {}, "prompt"),
        ("1", {"params": 3}, "params"),
        ("1", {"policy": "chance"}, "policy"),
        ("1", {"policy": "threshold:max_prob"}, "policy"),
        ("1", {"policy": 3}, "policy"),
        ("1", {"priority": "first"}, "priority"),
        ("1", {"timeout": 0}, "timeout"),
        ("1", {"params": SamplingParams(n=2)}, "n"),
        ("1", {"params": SamplingParams(stop_token_ids=(10**6,))}, "stop_token_ids"),
        ("1", {"params": SamplingParams(logit_bias={10**6: 1})}, "logit_bias"),
        ("1", {"params": SamplingParams(think_end="é")}, "think_end"),
        ("1", {"params": SamplingParams(4), "policy": "threshold@probe:8"}, "max_tokens"),
    ],
)
def test_fields_of_requests(engine: Engine, prompt: Any, given: dict[str, Any], field: str):
    with pytest.raises(SteerError) as raised:
        engine.submit(prompt, **{"policy": "small"} | given)
    assert raised.value.field == field


def test_a_stop_string_with_a_special_token(engine: Engine):
    special = next(iter(engine.tokenizer.special))
    with pytest.raises(SteerError, match="a special token") as raised:
        engine.submit("1", SamplingParams(stop=f"x{special}"), "small")
    assert raised.value.field == "stop"


def test_more_samples_than_can_wait(engine: Engine):
    with pytest.raises(SteerError) as raised:
        engine.submit_samples("1", SamplingParams(n=5), "small")
    assert raised.value.field == "n" and not isinstance(raised.value, QueueFullError)


@pytest.mark.parametrize(
    ("arena", "prompt", "most", "said", "field"),
    [
        (None, 300, 1, "exceed the context of 256", "prompt"),
        (None, 200, 57, "exceed the context of 256", "max_tokens"),
        (64, 100, 10, "need KV for 110 tokens, the arena holds 64", "prompt"),
        (64, 60, 10, "need KV for 70 tokens, the arena holds 64", "max_tokens"),
    ],
)
def test_what_is_too_long(arena: int | None, prompt: int, most: int, said: str, field: str):
    engine = Engine("tiny", config=EngineConfig(arena_tokens=arena) if arena else None)
    counts = f"prompt of {prompt} tokens and max_tokens {most}"
    with pytest.raises(ContextLengthError, match=f"^{counts} {said}") as raised:
        engine.submit([5] * prompt, SamplingParams(most), "small")
    assert raised.value.field == field


def test_a_prompt_of_many_keeps_the_kind_and_the_field(engine: Engine):
    with pytest.raises(ContextLengthError, match=r"^prompt 1: prompt of 300 tokens") as raised:
        engine.generate(["1", [5] * 300], SamplingParams(8), "small")
    assert raised.value.field == "prompt"


@pytest.mark.parametrize("kind", [SteerError, ContextLengthError, QueueFullError])
def test_an_error_is_sent_to_another_process(kind: type[SteerError]):
    for again in (lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy):
        sent = again(kind("too long", field="prompt"))
        assert type(sent) is kind and str(sent) == "too long" and sent.field == "prompt"
    wrapped = kind("too long")
    assert wrapped.field is None and str(type(wrapped)(f"prompt 3: {wrapped}")) == (
        "prompt 3: too long"
    )


def test_include_stop_is_a_parameter():
    assert SamplingParams().include_stop is False
    assert SamplingParams(stop="x", include_stop=True).include_stop is True
