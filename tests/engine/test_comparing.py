"""Public values can be compared, counted in sets, copied and pickled."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import pytest

from engine import Calibration, Completion, Engine, SamplingParams, Speculated, Steer, Usage
from engine.config import TINY


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("tiny")


@pytest.fixture(scope="module")
def answers(engine: Engine) -> list[Completion]:
    params = SamplingParams(max_tokens=30, logprobs=2, token_signals=True, audit="score")
    return engine.generate(["47+36?\n\n", "82*71?\n\n"], params, "steer")


def test_an_answer_equals_its_copies_and_no_other(answers: list[Completion]):
    one, two = answers
    for same in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one), replace(one)):
        assert same == one and hash(same) == hash(one) and same != two
        assert same.usage == one.usage and hash(same.usage) == hash(one.usage)
        assert {one, same, two} == {one, two} and answers.index(same) == 0
    assert one != "47" and one.usage != 3


def test_each_count_of_a_usage_matters():
    whole = Usage()
    for name, value in vars(whole).items():
        other = copy.deepcopy(whole)
        if isinstance(value, Speculated):
            changed = value + Speculated(accepted=1, accepted_at=(0, 1))
        elif isinstance(value, int):
            changed = value + 1
        else:
            changed = value.copy()
            changed.flat[-1] += 1
        other = replace(other, **{name: changed})
        assert other != whole and hash(other) != hash(whole), name
        assert replace(other, **{name: value}) == whole


def test_a_usage_read_from_a_trace_is_equal(answers: list[Completion]):
    usage = answers[0].usage
    assert Usage.from_json(usage.to_json()) == usage == usage + Usage()


def test_what_guessing_did_is_read_from_a_trace(engine: Engine):
    guessed = engine.generate(["47+36*37-15?\n\n"], SamplingParams(max_tokens=32), "speculate:3")
    usage = guessed[0].usage
    written = json.loads(json.dumps(usage.to_json()))
    assert usage.speculated.accepted > 0 and Usage.from_json(written) == usage
    twice = (usage + usage).speculated
    assert twice.accepted_at == tuple(2 * n for n in usage.speculated.accepted_at)
    for wrong in ([1], {"guesses": 3}, {"passes": "many"}):
        with pytest.raises((TypeError, ValueError)):
            Usage.from_json(written | {"speculated": wrong})


def test_parameters_and_policies_can_be_counted(engine: Engine):
    lists = SamplingParams(stop=["a", "b"], stop_token_ids=[3], logit_bias={3: 1})
    assert {lists} == {SamplingParams(stop=("a", "b"), stop_token_ids=(3,), logit_bias={3: 1.0})}
    one, same = (Calibration.load(TINY / "calibration.json", engine.fingerprint) for _ in range(2))
    assert {one, same} == {one} and {Steer(one), Steer(same)} == {Steer(one)}
    assert Steer(one) != Steer(replace(one, tau=0.1))
