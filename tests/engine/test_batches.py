"""Batches of generate(): checked as a whole, with parameters, policies and priorities for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine import Engine, EngineConfig, Random, SamplingParams, SteerError, Usage
from engine.replay.trace import Trace
from engine.routing.policy import Boundary

GOOD, LONG = "47+36*37-15?\n\n", "1+" * 200 + "1?\n\n"
PARAMS = SamplingParams(max_tokens=30)
REFUSED = {
    LONG: "prompt of 403 tokens and max_tokens 30 exceed the context of 256 tokens",
    "": "the prompt is empty",
    "1Zebra?": "the tokenizer does not know 'Z'",
    "1\udcff": "the text holds characters that are not valid Unicode",
}


@pytest.fixture
def engine() -> Engine:
    """Its queue is shorter than the batches."""
    return Engine("tiny", config=EngineConfig(max_waiting=4, max_sequences=4, check_every=1))


@pytest.mark.parametrize("wrong", [*REFUSED, b"47", [3, 99], [3, True], 3, None, {3: 4}])
def test_all_prompts_are_checked_before_any_runs(engine: Engine, wrong: Any):
    """The wrong one comes last, after more prompts than the queue holds; it is named."""
    asked: list[int] = []

    def policy(boundary: Boundary) -> str:
        asked.append(boundary.request)
        return "small"

    with pytest.raises(SteerError, match=r"^prompt 12: ") as raised:
        engine.generate([*[GOOD] * 12, wrong], PARAMS, policy)
    assert not asked and "\n" not in str(raised.value)
    assert len(engine.generate([GOOD] * 12, PARAMS, policy)) == 12


def test_a_prompt_beyond_the_arena_is_named_before_any_runs():
    engine = Engine("tiny", config=EngineConfig(arena_tokens=64))
    with pytest.raises(SteerError, match=r"^prompt 1: .* the arena holds 64$"):
        engine.generate([GOOD, "1" * 100], SamplingParams(max_tokens=10), lambda b: 1 / 0)


def test_a_batch_goes_on_without_what_cannot_run(engine: Engine):
    alone = [c.text for c in engine.generate([GOOD] * 2, PARAMS, "small")]
    prompts = [*REFUSED, GOOD, "3 4\udcff", GOOD]
    done = engine.generate(prompts, PARAMS, "small", errors="return")
    assert [c.finish_reason == "error" for c in done] == [True] * 4 + [False, True, False]
    for completion, message in zip(done, REFUSED.values(), strict=False):
        assert (completion.text, completion.error) == ("", message)
        assert completion.request_id == -1 and completion.token_ids == ()
        assert completion.usage == Usage()
    assert [c.text for c in done if c.error is None] == alone


def test_samples_of_a_prompt_that_cannot_run(engine: Engine):
    params = SamplingParams(max_tokens=30, n=2, temperature=1.0)
    done = engine.generate([LONG, GOOD], params, "small", errors="return")
    assert [(c.sample, c.error is None) for c in done] == [
        (0, False),
        (1, False),
        (0, True),
        (1, True),
    ]


def test_a_trace_leaves_out_what_did_not_run(engine: Engine, tmp_path: Path):
    path = tmp_path / "t.jsonl"
    engine.generate([GOOD, LONG], PARAMS, "small", errors="return", trace=path)
    assert len(Trace.read(path).requests) == 1


@pytest.mark.parametrize("errors", ["ignore", None, True])
def test_unknown_ways_with_errors(engine: Engine, errors: Any):
    with pytest.raises(SteerError, match='errors must be "raise" or "return"'):
        engine.generate([GOOD], PARAMS, "small", errors=errors)


def test_parameters_policies_and_priorities_for_each_prompt(engine: Engine):
    """Each answer is what its own call gives."""
    params = [SamplingParams(max_tokens=n) for n in (3, 30, 9)]
    policies = ["small", Random(1.0), lambda boundary: "large"]
    done = engine.generate([GOOD] * 3, params, policies, priority=[2, 0, 1])
    for answer, wanted, policy in zip(done, params, policies, strict=True):
        (alone,) = engine.generate([GOOD], wanted, policy)
        assert answer.token_ids == alone.token_ids
    assert [{s.model for s in c.steps} for c in done] == [{"small"}, {"large"}, {"large"}]


def test_samples_may_differ_in_number(engine: Engine):
    params = [SamplingParams(max_tokens=3, n=n) for n in (1, 3, 2)]
    done = engine.generate([GOOD] * 3, params, "small")
    assert [c.sample for c in done] == [0, 0, 1, 2, 0, 1]


def test_parameters_of_some_prompts_only(engine: Engine):
    done = engine.generate([GOOD] * 2, [None, SamplingParams(max_tokens=2)], "small")
    assert len(done[0].token_ids) > 2 and len(done[1].token_ids) == 2


def test_priorities_order_a_batch():
    """One sequence runs at a time, the lowest number first."""
    engine = Engine("tiny", config=EngineConfig(max_sequences=1))
    order: list[int] = []

    def policy(boundary: Boundary) -> str:
        order.append(boundary.request)
        return "small"

    done = engine.generate([GOOD] * 3, PARAMS, policy, priority=[3, 1, 2])
    first = [c.request_id for c in done]
    assert list(dict.fromkeys(order)) == [first[1], first[2], first[0]]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"params": [PARAMS]}, "params"),
        ({"policy": ["small"] * 3}, "policy"),
        ({"priority": []}, "priority"),
    ],
)
def test_lists_of_another_length(engine: Engine, given: dict[str, Any], name: str):
    expected = f"^{name} must be one for all prompts or a list of one for each: got . for 2 prompts"
    with pytest.raises(SteerError, match=expected):
        engine.generate([GOOD] * 2, **given)


def test_a_trace_is_of_one_policy(engine: Engine, tmp_path: Path):
    path = tmp_path / "t.jsonl"
    with pytest.raises(SteerError, match="a trace is of one policy, got 2"):
        engine.generate([GOOD] * 2, PARAMS, ["small", "large"], trace=path)
    engine.generate([GOOD] * 2, PARAMS, ["small", "small"], trace=path)
    assert Trace.read(path).policy == "small"


def test_prompts_may_come_from_a_generator(engine: Engine):
    done = engine.generate((GOOD for _ in range(3)), PARAMS, "small")
    assert [c.text for c in done] == [engine.generate([GOOD], PARAMS, "small")[0].text] * 3


@pytest.mark.parametrize("prompts", [GOOD, GOOD.encode(), {"prompt": GOOD}, {GOOD}, 5, None])
def test_what_is_no_list_of_prompts(engine: Engine, prompts: Any):
    expected = r"^generate\(\) takes a list of prompts, got one (str|bytes|dict|set|int|NoneType); "
    with pytest.raises(SteerError, match=expected):
        engine.generate(prompts, PARAMS, "small")
