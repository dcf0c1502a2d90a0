"""Faults of other servers that no other file here holds; ``test_pitfalls.py`` lists them all."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.serve.conftest import error_of
from tests.serve.served import Served

pytestmark = pytest.mark.xdist_group("steer-serve")
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPT = "47+36*7-15?\n\n"


@pytest.mark.parametrize("source", ["3", "3:lookup"])
def test_log_probabilities_of_guessed_tokens(tiny_process: Served, source: str):
    """One for each token whatever was guessed, and those of the model that wrote it, not 0."""
    asked = {"prompt": PROMPT, "max_tokens": 40, "logprobs": 3, "temperature": 0}

    def lists(**more: Any) -> Any:
        answer = tiny_process.client.post(COMPLETIONS, json={**asked, **more}).json()
        return answer["choices"][0]["logprobs"]

    plain = lists(model="large")
    guessed = lists(routing={"policy": "large", "speculate": source})
    assert guessed["tokens"] == plain["tokens"] and guessed["text_offset"] == plain["text_offset"]
    assert guessed["token_logprobs"] == pytest.approx(plain["token_logprobs"], abs=1e-4)
    assert any(logprob < -1e-6 for logprob in guessed["token_logprobs"])
    for found, expected in zip(guessed["top_logprobs"], plain["top_logprobs"], strict=True):
        assert found == pytest.approx(expected, abs=1e-3)


WRONG: list[dict[str, Any]] = [
    {"stop": [5] * 16, "user": "secret" * 600},
    {"logit_bias": {f"secret-{i}": 1 for i in range(250)}},
    {"logit_bias": {str(i): "secret" for i in range(250)}},
    {"stop_token_ids": ["secret"] * 400},
    {"model": "secret" * 600},
    {"request_id": "secret" * 600},
    {"routing": {"policy": "secret" * 600}},
    {"routing": {"policy": "steer" + "+sticky:0.5" * 15}},
    {"routing": {f"secret-{i}": 1 for i in range(250)}},
    {"messages": [{"role": "secret" * 600, "content": "secret"}]},
    {"messages": ["secret"] * 400},
    {"messages": [{"role": "user", "content": "\x01" * 4000}]},
    {"messages": [{"role": "user", "content": [{"type": "kind" * 900}]}]},
    {"chat_template_kwargs": {f"name-{i}": i for i in range(250)}},
    {"prompt": ["\x01secret"] * 100},
    {"prompt": [["secret"]] * 100},
    {"stream_options": ["secret"] * 400},
    {"n": 10**15, "stream": "secret" * 600},
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_wrong_body_has_a_short_answer(tiny_process: Served, number: int):
    """4 kB that ask for much: no list of all faults, no trace, nothing of the input."""
    wrong = WRONG[number]
    path = COMPLETIONS if "prompt" in wrong else CHAT
    body = {"prompt": "1"} if path == COMPLETIONS else {"messages": [{"role": "user"}]}
    began = time.perf_counter()
    response = tiny_process.client.post(path, json={**body, **wrong})
    assert time.perf_counter() - began < 2
    error = error_of(response, 404 if "model" in wrong else 400)
    assert len(response.content) < 1500
    assert "secret" not in error["message"] and "secretsecret" not in str(error["param"])


def test_a_long_prompt_stops_no_probe(tiny_process: Served):
    """5 MB are read and parsed, and 0.4 MB tokenised, without a stop of the event loop."""
    texts = ["1" * 5_000_000, "2" * 400_000]  # the pair's template writes the last one only
    long = [{"role": "user", "content": text} for text in texts]
    waits = []
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(tiny_process.client.post, CHAT, json={"messages": long})
        while not asked.done():
            began = time.perf_counter()
            assert tiny_process.client.get("/health").status_code == 200
            waits.append(time.perf_counter() - began)
            time.sleep(0.01)
    assert error_of(asked.result(), 400)["code"] == "context_length_exceeded"
    assert len(waits) > 5 and max(waits) < 1


def test_head(tiny_process: Served):
    client = tiny_process.client
    for path in ("/health", "/v1/models", "/v1/models/tiny", "/v1//models/", "/openapi.json"):
        head, whole = client.head(path), client.get(path)
        assert head.status_code == whole.status_code == 200 and not head.content
        assert head.headers["content-length"] == str(len(whole.content))
    for path in (CHAT, COMPLETIONS, "/tokenize"):
        assert client.head(path).status_code == 405
        assert client.head(path).headers["allow"] == "POST"
    assert client.head("/v1/models/other").status_code == 404


def test_a_log_has_ids_and_no_prompts(tiny_process: Served):
    """At the lowest level, through the real routes: answers, streams, errors, unknown fields."""
    secret, client = "31415+92653", tiny_process.client
    messages = [{"role": "user", "content": f"{secret}?"}]
    stop = {"stop": [secret], "user": secret, "store": True}
    for more in ({}, {"stream": True}, {"max_tokens": 5000}, {"n": secret}, {"tools": [secret]}):
        client.post(CHAT, json={"messages": messages, "max_tokens": 4, **stop, **more})
    client.post(COMPLETIONS, json={"prompt": f"{secret}é"})
    client.post(COMPLETIONS, content=secret, headers={"Content-Type": "application/json"})
    client.get(f"/v1/models/{secret}", params={"q": secret}, headers={"X-Request-Id": "the-last"})
    written = tiny_process.logged("id=the-last")
    assert secret not in written and "ignored fields: store, user" in written


@pytest.mark.parametrize(
    ("more", "failure"),
    [({"timeout": 1e-6}, openai.APIStatusError), ({"n": 17}, openai.BadRequestError)],
)
def test_what_would_fail_again_is_not_tried_again(
    tiny_process: Served, more: dict[str, Any], failure: type[openai.APIStatusError]
):
    """The client would try a 408 twice more."""

    def answered() -> int:
        lines = tiny_process.client.get("/metrics").text.splitlines()
        counts = [line for line in lines if line.startswith("steer_http_requests_total{")]
        return sum(int(float(c.rpartition(" ")[2])) for c in counts if COMPLETIONS in c)

    before = answered()
    with openai.OpenAI(base_url=f"{tiny_process.url}/v1", api_key="none", max_retries=2) as client:
        with pytest.raises(failure) as failed:
            client.completions.create(model="tiny", prompt=PROMPT, extra_body=more)
        assert failed.value.status_code in (400, 408)
    assert answered() == before + 1
