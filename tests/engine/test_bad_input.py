"""Bad input gets one line that names what is wrong and what would be right; nothing is lost."""

from __future__ import annotations

import re

import pytest

from engine import Engine, EngineConfig, Random, SamplingParams, SteerError, Threshold
from engine.config.pairs import Pair

PROMPT = "47+36*7-15?\n\n"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("tiny")


def test_unknown_pair():
    with pytest.raises(SteerError, match=r"unknown pair 'qwen-9b/qwen-1b'; known: tiny, "):
        Engine("qwen-9b/qwen-1b")


def test_pair_without_weights():
    with pytest.raises(SteerError, match="no weights; pass small=FOLDER and large=FOLDER"):
        Engine("qwen-1.5b/qwen-32b")


def test_pair_with_one_folder_only():
    with pytest.raises(
        SteerError, match="the large model is missing: pass its folder or GGUF file"
    ):
        Pair.named("qwen-1.5b/qwen-32b", small="somewhere")


@pytest.mark.parametrize("policy", ["stear", "small:0.5", ""])
def test_unknown_policy(engine: Engine, policy: str):
    with pytest.raises(SteerError, match=r"unknown policy .*; known: small, large, random"):
        engine.generate([PROMPT], policy=policy)


@pytest.mark.parametrize("policy", ["threshold:max_prob", "threshold:max_prob:much"])
def test_malformed_threshold(engine: Engine, policy: str):
    with pytest.raises(SteerError, match="expected threshold:SIGNAL:VALUE"):
        engine.generate([PROMPT], policy=policy)


def test_unknown_signal():
    with pytest.raises(SteerError, match="unknown signal 'mood'; known: max_prob, entropy"):
        Threshold("mood", 1.0)


def test_share_out_of_range():
    with pytest.raises(SteerError, match=r"share must be in \[0, 1\], got 1.5"):
        Random(1.5)


def test_empty_prompt(engine: Engine):
    with pytest.raises(SteerError, match="the prompt is empty"):
        engine.generate([""])


def test_prompt_with_a_foreign_id(engine: Engine):
    with pytest.raises(
        SteerError, match=rf"token id 99 is not in 0\.\.{engine.tokenizer.size - 1}\b"
    ):
        engine.generate([[3, 99]])


def test_prompt_longer_than_the_context(engine: Engine):
    with pytest.raises(SteerError, match="exceed the context of 256 tokens"):
        engine.generate(["1" * 300], SamplingParams(max_tokens=1))


def test_prompt_longer_than_the_arena():
    engine = Engine("tiny", config=EngineConfig(arena_tokens=64))
    with pytest.raises(SteerError, match="need KV for 110 tokens, the arena holds 64"):
        engine.generate(["1" * 100], SamplingParams(max_tokens=10))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_tokens", 0, "max_tokens must be at least 1, got 0"),
        ("max_tokens", -3, "max_tokens must be at least 1, got -3"),
        ("temperature", -0.1, "temperature must be 0 or more, got -0.1"),
        ("temperature", float("nan"), "temperature must be 0 or more, got nan"),
        ("temperature", float("inf"), "temperature must be 0 or more, got inf"),
        ("top_p", 0.0, r"top_p must be in \(0, 1\]"),
        ("top_p", 1.5, r"top_p must be in \(0, 1\]"),
        ("top_k", -1, r"top_k must be 0 \(off\) or more"),
        ("min_p", 2.0, r"min_p must be in \[0, 1\]"),
        ("seed", -1, "seed must be in"),
        ("repetition_penalty", 0, "repetition_penalty must be above 0 and finite, got 0"),
        ("repetition_penalty", -1.5, "repetition_penalty must be above 0 and finite, got -1.5"),
        ("repetition_penalty", float("nan"), "repetition_penalty must be above 0 and finite"),
        ("repetition_penalty", float("inf"), "repetition_penalty must be above 0 and finite"),
        ("repetition_penalty", 10**400, "repetition_penalty must be above 0 and finite"),
        ("presence_penalty", 2.1, r"presence_penalty must be in \[-2, 2\], got 2.1"),
        ("presence_penalty", float("nan"), r"presence_penalty must be in \[-2, 2\], got nan"),
        ("frequency_penalty", -2.1, r"frequency_penalty must be in \[-2, 2\], got -2.1"),
        ("frequency_penalty", float("nan"), r"frequency_penalty must be in \[-2, 2\], got nan"),
        ("logprobs", -1, r"logprobs must be None or in 0\.\.20, got -1"),
        ("logprobs", 21, r"logprobs must be None or in 0\.\.20, got 21"),
    ],
)
def test_sampling_params(field: str, value: float, message: str):
    with pytest.raises(SteerError, match=message):
        SamplingParams(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("block_tokens", 0), ("arena_tokens", -1), ("max_sequences", 0), ("delimiters", ("",))],
)
def test_engine_config(field: str, value: object):
    with pytest.raises(SteerError, match=field):
        EngineConfig(**{field: value})


def test_context_beyond_the_models():
    with pytest.raises(SteerError, match="max_context 999 exceeds the models' 256"):
        Engine("tiny", config=EngineConfig(max_context=999))


def test_unknown_dtype():
    with pytest.raises(SteerError, match="unknown dtype 'int3'; known: float32, bfloat16, auto"):
        Engine("tiny", dtype="int3")


def test_a_refused_prompt_leaves_the_others_untouched(engine: Engine):
    """One bad prompt of many: nothing stays behind and the engine goes on."""
    with pytest.raises(SteerError):
        engine.generate([PROMPT, ""])
    engine.scheduler.check_integrity()
    assert engine.scheduler.running == engine.scheduler.waiting == 0
    assert engine.generate([PROMPT])[0].finish_reason == "stop"


@pytest.mark.parametrize("answer", ["medium", None, 3])
def test_a_callable_that_answers_nonsense(engine: Engine, answer: object):
    with pytest.raises(SteerError, match="a policy must answer 'small', 'large' or a Decision"):
        engine.generate([PROMPT], policy=lambda boundary: answer)
    assert engine.generate([PROMPT])[0].finish_reason == "stop"


def test_text_that_the_tokenizer_cannot_write(engine: Engine):
    with pytest.raises(SteerError, match="the tokenizer does not know 'Z'"):
        engine.generate(["47+1Zebra"])
    with pytest.raises(SteerError, match="not valid Unicode"):
        engine.generate(["47\udcff"])


def test_one_text_is_no_list_of_prompts(engine: Engine):
    with pytest.raises(SteerError, match="takes a list of prompts"):
        engine.generate(PROMPT)


@pytest.mark.parametrize(
    "field",
    [
        {"max_tokens": 5.5},
        {"top_k": 2**70},
        {"stop_token_ids": ("a",)},
        {"seed": "x"},
        {"temperature": "hot"},
        {"max_tokens": 99999999999},
        {"repetition_penalty": "1"},
        {"repetition_penalty": True},
        {"repetition_penalty": None},
        {"presence_penalty": "a"},
        {"presence_penalty": False},
        {"frequency_penalty": [1.0]},
        {"logprobs": True},
        {"frequency_penalty": None},
        {"logprobs": 2.0},
        {"logprobs": "5"},
        {"logprobs": []},
    ],
)
def test_sampling_params_of_the_wrong_type(field: dict[str, object]):
    with pytest.raises(SteerError, match=f"^{next(iter(field))} must be .*"):
        SamplingParams(**field)


@pytest.mark.parametrize(
    ("biases", "found"),
    [
        ([(3, 1.0)], "a list"),
        (None, "a NoneType"),
        ("3", "a str"),
        ({3}, "a set"),
        ({"3": 1.0}, "1.0 for '3'"),
        ({3.0: 1.0}, "1.0 for 3.0"),
        ({True: 1.0}, "1.0 for True"),
        ({-1: 1.0}, "1.0 for -1"),
        ({2**31: 1}, "1 for 2147483648"),
        ({3: "1"}, "'1' for 3"),
        ({3: True}, "True for 3"),
        ({3: None}, "None for 3"),
        ({3: float("nan")}, "nan for 3"),
        ({3: 100.5}, "100.5 for 3"),
        ({1: 5, 3: -101}, "-101 for 3"),
    ],
)
def test_biases_that_are_none(biases: object, found: str):
    expected = "logit_bias must map token ids to numbers in [-100, 100], got " + found
    with pytest.raises(SteerError, match=f"^{re.escape(expected)}$"):
        SamplingParams(logit_bias=biases)


def test_a_priority_that_is_no_number(engine: Engine):
    with pytest.raises(SteerError, match="priority must be a whole number"):
        engine.submit(PROMPT, priority="high")


def test_a_tiny_temperature_is_nearly_greedy(engine: Engine):
    """Dividing by it must not overflow."""
    greedy = engine.generate([PROMPT])[0].text
    assert engine.generate([PROMPT], SamplingParams(temperature=1e-310))[0].text == greedy
