"""Model names and ``routing``: which policy answers, and what is said of it."""

from __future__ import annotations

import pytest

from .running import Running

PATH = "/v1/completions"
ASKED = {"prompt": "47+36*7-15?\n\n", "temperature": 0, "max_tokens": 60}


def policy_of(server: Running, **more) -> str:
    return server.post(PATH, **ASKED, **more)["steer"]["policy"]


@pytest.mark.parametrize(
    ("routing", "policy"),
    [
        (None, "steer"),
        ({}, "steer"),
        ({"tau": 0.25}, "steer:0.25"),
        ({"policy": "threshold:max_prob:0.9"}, "threshold:max_prob:0.9"),
        (
            {"policy": "threshold:max_prob:0.9", "window": "probe:3:least"},
            "threshold:max_prob:0.9@probe:3:least",
        ),
        ({"speculate": 3}, "steer+speculate:3"),
        ({"speculate": "3:lookup", "tau": 0.5}, "steer:0.5+speculate:3:lookup"),
        ({"policy": "steer+two-way:0.9", "tau": 0.5}, "steer:0.5+two-way:0.9"),
    ],
)
def test_a_routing_is_a_policy(tiny: Running, routing, policy: str):
    assert policy_of(tiny, routing=routing) == policy


@pytest.mark.parametrize(("model", "author"), [("small", "small"), ("large", "large")])
def test_one_model_alone(tiny: Running, model: str, author: str):
    answer = tiny.post(PATH, model=model, **ASKED)
    assert answer["model"] == model
    steps = answer["steer"]["choices"][0]["steps"]
    assert steps and {step["author"] for step in steps} == {author}
    assert answer["usage"]["steer"]["tokens"][author] == answer["usage"]["completion_tokens"]
    assert sum(step["tokens"] for step in steps) == answer["usage"]["completion_tokens"]


@pytest.mark.parametrize("model", ["", None, "tiny", "again"])
def test_the_name_asked_for_is_repeated(tiny: Running, model):
    assert tiny.post(PATH, model=model, **ASKED)["model"] == (model or "tiny")


def test_an_unknown_model_is_a_404(tiny: Running):
    error = tiny.refused(PATH, 404, model="gpt-4", **ASKED)
    assert error["code"] == "model_not_found" and error["param"] == "model"
    assert "tiny, again, small, large" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"routing": {"policy": "nonsense"}}, "routing.policy"),
        ({"routing": {"policy": "threshold:x:y"}}, "routing.policy"),
        ({"routing": {"tau": "a"}}, "routing.tau"),
        ({"routing": {"tau": 0.5, "policy": "small"}}, "routing.tau"),
        ({"routing": {"window": "probe"}}, "routing.window"),
        ({"routing": {"speculate": 0}}, "routing.speculate"),
        ({"routing": {"speculate": "x"}}, "routing.speculate"),
        ({"routing": {"max_large_share": 2}}, "routing.max_large_share"),
        ({"routing": {"polcy": "small"}}, "routing.polcy"),
        ({"routing": {"policy": "random"}, "model": "small"}, "routing.policy"),
        ({"routing": {"tau": 0.5}, "model": "large"}, "routing.tau"),
    ],
)
def test_a_bad_routing_is_named(tiny: Running, fields: dict, param: str):
    assert tiny.refused(PATH, **ASKED, **fields)["param"].startswith(param)


def test_the_share_is_a_limit(tiny: Running):
    routing = {"policy": "random:1", "max_large_share": 0}
    answer = tiny.post(PATH, routing=routing, **ASKED)
    assert answer["steer"]["choices"][0]["large_token_share"] < 1


def test_policies_are_kept_and_bounded(tiny: Running):
    for n in range(70):
        tiny.post(PATH, prompt="1", max_tokens=1, routing={"tau": 0.5 + n / 1000})
    assert len(tiny.service.routes._made) == 64


def test_the_object_says_what_it_cost(tiny: Running):
    answer = tiny.post(PATH, routing={"policy": "random:0.5"}, n=4, **ASKED)
    steer, usage = answer["steer"], answer["usage"]["steer"]
    assert steer.keys() == {"policy", "choices", "tokens", "flops", "times"}
    assert steer["flops"] == usage["flops"] and steer["tokens"] == usage["tokens"]
    names = {"decode", "catchup", "reprefill"}
    assert steer["flops"].keys() == names | {"large_alone"}
    assert steer["flops"]["large_alone"].keys() == names
    assert 0 < steer["flops"]["decode"] < steer["flops"]["large_alone"]["decode"]
    assert 0 <= steer["times"]["started"] <= steer["times"]["ended"]
    for step in steer["choices"][0]["steps"]:
        assert {"index", "author", "reason", "kind", "posterior", "signals", "position"} <= set(
            step
        )
        assert {"tokens", "tried", "catch_up"} <= set(step)
