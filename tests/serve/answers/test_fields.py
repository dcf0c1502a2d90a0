"""What is wrong in a request is a 400 in OpenAI's shape, and costs nothing."""

from __future__ import annotations

import logging
import time

import pytest

from .running import Running

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
WRONG = [
    {"top_logprobs": "x"},
    {"top_logprobs": 21, "logprobs": True},
    {"logprobs": 2},
    {"stop": 5},
    {"stop": [5]},
    {"stop": [""]},
    {"tools": []},
    {"tools": [5]},
    {"messages": []},
    {"messages": "hi"},
    {"messages": [5]},
    {"n": 0},
    {"n": True},
    {"n": 1.5},
    {"n": "2"},
    {"n": 17},
    {"temperature": -1},
    {"temperature": "hot"},
    {"top_p": 0},
    {"top_k": -2},
    {"presence_penalty": 3},
    {"seed": 2**63},
    {"logit_bias": {"x": 1}},
    {"logit_bias": {"1": 101}},
    {"logit_bias": {"99999": 1}},
    {"logit_bias": [1]},
    {"stop_token_ids": [-1]},
    {"stop_token_ids": [9999]},
    {"max_tokens": 0},
    {"max_tokens": -1},
    {"min_tokens": 5, "max_tokens": 4},
    {"stream": "yes"},
    {"stream_options": 5},
    {"priority": 2**40},
    {"timeout": 0},
    {"request_id": ""},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {}},
    {"reasoning_effort": "lots"},
    {"routing": 5},
]


@pytest.mark.parametrize("fields", WRONG, ids=str)
def test_a_wrong_field_is_named(writes: Running, fields: dict):
    error = writes.refused(CHAT, **{"messages": MESSAGES, **fields})
    assert error["type"] == "invalid_request_error"
    assert any((error["param"] or "").startswith(name) for name in fields)
    assert "Traceback" not in error["message"] and "0x" not in error["message"]
    assert writes.idle()


@pytest.mark.parametrize(
    "prompt", [None, 5, "", [], [""], [[]], [1, "a"], [[1], "a"], [True], [-1]]
)
def test_a_wrong_prompt_is_named(tiny: Running, prompt):
    assert tiny.refused(COMPLETIONS, prompt=prompt)["param"].startswith("prompt")


def test_a_missing_field_is_named(tiny: Running):
    assert tiny.refused(COMPLETIONS)["param"] == "prompt"
    assert tiny.refused(CHAT)["param"] == "messages"
    assert tiny.refused(COMPLETIONS, prompt="1", suffix="2")["param"] == "suffix"
    assert tiny.client.post(CHAT, json=[1]).status_code == 400


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ["a"] * 500_000}, "stop"),
        ({"logit_bias": {str(i): 1 for i in range(50_000)}}, "logit_bias"),
        ({"stop_token_ids": [1] * 500_000}, "stop_token_ids"),
        ({"prompt": ["1"] * 100_000}, "prompt"),
        ({"prompt": ["1"] * 100, "n": 2}, "n"),
        ({"n": 10**9}, "n"),
    ],
)
def test_too_many_entries_cost_nothing(tiny: Running, fields: dict, param: str):
    began = time.perf_counter()
    assert tiny.refused(COMPLETIONS, **{"prompt": "1", **fields})["param"] == param
    assert time.perf_counter() - began < 2


def test_too_many_messages_and_tools(writes: Running):
    assert writes.refused(CHAT, messages=MESSAGES * 5000)["param"] == "messages"
    tools = [{"type": "function", "function": {"name": "f"}}] * 200
    assert writes.refused(CHAT, messages=MESSAGES, tools=tools)["param"] == "tools"


def test_unknown_fields_are_ignored_and_logged(writes: Running, caplog: pytest.LogCaptureFixture):
    unknown = {"user": "me", "store": True, "metadata": {"a": 1}, "parallel_tool_calls": False}
    with caplog.at_level(logging.DEBUG, "engine.serve.fields"):
        writes.chat("secret", **unknown)
    assert "metadata, parallel_tool_calls, store, user" in caplog.text
    assert "secret" not in caplog.text


def test_null_is_not_given(writes: Running):
    names = (
        "temperature",
        "stop",
        "tools",
        "n",
        "seed",
        "logit_bias",
        "stream",
        "routing",
        "model",
    )
    assert writes.chat(**dict.fromkeys(names))["choices"][0]["finish_reason"] == "stop"


def test_the_document_knows_the_fields(writes: Running):
    paths = writes.client.get("/openapi.json").json()["paths"]
    body = paths[CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"messages", "routing", "max_completion_tokens"} <= body["properties"].keys()
    assert "prompt" in str(paths[COMPLETIONS])
