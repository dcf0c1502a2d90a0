"""POST /v1/chat/completions as a stream: its chunks, from the role to [DONE]."""

from __future__ import annotations

import pytest

from engine import Engine

from .running import Running, frames_of, running

TEXT = "é\n\n😁c\u2028d"
CHAT = "/v1/chat/completions"
ASKED = {"messages": [{"role": "user", "content": "hi"}]}
USAGE = {"stream_options": {"include_usage": True}}


def deltas(chunks: list, index: int = 0) -> list:
    choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
    assert choices, "no chunk of this choice"
    return choices


def text_of(chunks: list, index: int = 0, name: str = "content") -> str:
    return "".join(choice["delta"].get(name) or "" for choice in deltas(chunks, index))


def test_from_the_role_to_the_end(writes: Running):
    first, *others = deltas(writes.chat_stream(model="again"))
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert not any("role" in choice["delta"] for choice in others)
    assert [c["finish_reason"] for c in [first, *others[:-1]]] == [None] * len(others)
    assert others[-1]["finish_reason"] == "stop" and others[-1]["delta"] == {}


def test_the_chunks_are_one_answer(writes: Running):
    chunks = writes.chat_stream(model="again")
    assert text_of(chunks) == TEXT
    assert {c["model"] for c in chunks} == {"again"} and len({c["id"] for c in chunks}) == 1
    assert all(len(chunk["choices"]) == 1 and "usage" not in chunk for chunk in chunks)
    assert writes.idle()


def test_no_character_is_split(writes: Running):
    for choice in deltas(writes.chat_stream()):
        assert "\ufffd" not in choice["delta"].get("content", "")
    assert text_of(writes.chat_stream(max_tokens=4)) == "é\n\n\ufffd"


def test_text_is_raw_and_in_one_line(writes: Running):
    raw = writes.raw(CHAT, **ASKED)
    assert "é".encode() in raw and "😁".encode() in raw and "\u2028".encode() in raw
    assert b"\\u" not in raw and b"event:" not in raw
    lines = [line for line in raw.split(b"\n") if line]
    assert all(line.startswith(b"data: ") for line in lines)
    assert lines[-1] == b"data: [DONE]"


@pytest.mark.parametrize(("stop", "text"), [("😁c", "é\n\n"), ("c", "é\n\n😁"), ("d!", TEXT)])
def test_nothing_of_a_stop_string_leaks(writes: Running, stop: str, text: str):
    chunks = writes.chat_stream(stop=stop)
    assert text_of(chunks) == text
    assert deltas(chunks)[-1]["finish_reason"] == "stop"


def test_usage_comes_last_and_only_if_asked_for(writes: Running):
    *chunks, last = writes.chat_stream(n=2, **USAGE)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 26
    assert last["usage"] == {**writes.chat(n=2)["usage"], **_changing(last["usage"])}
    assert all(chunk["usage"] is None for chunk in chunks)


def _changing(usage: dict) -> dict:
    """What depends on the draws of the policy, and on what was cached."""
    return {name: usage[name] for name in ("steer", "prompt_tokens_details")}


def test_usage_in_every_chunk(writes: Running):
    both = {"include_usage": True, "continuous_usage_stats": True}
    chunks = writes.chat_stream(stream_options=both)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[0] == 0 and counts[-1] == 13


def test_samples_are_interleaved(writes: Running):
    chunks = writes.chat_stream(n=3, **USAGE)
    for index in range(3):
        first, *_, last = deltas(chunks, index)
        assert first["delta"]["role"] == "assistant" and last["finish_reason"] == "stop"
        assert text_of(chunks, index) == TEXT
        ended = [c["finish_reason"] for c in deltas(chunks, index) if c["finish_reason"]]
        assert ended == ["stop"]
    assert sum(not chunk["choices"] for chunk in chunks) == 1


def test_a_limit_is_a_length(writes: Running):
    assert deltas(writes.chat_stream(max_tokens=2))[-1]["finish_reason"] == "length"


def test_thoughts_are_apart(thinks: Running):
    chunks = thinks.chat_stream()
    assert text_of(chunks) == "xy\n\nz"
    assert text_of(chunks, name="reasoning") == text_of(chunks, name="reasoning_content") == "ab"


def test_a_prompt_that_opens_the_thoughts(thinks: Running):
    kwargs = {"chat_template_kwargs": {"enable_thinking": True}}
    chunks, whole = thinks.chat_stream(**kwargs), thinks.chat(**kwargs)
    message = whole["choices"][0]["message"]
    assert message["content"] == text_of(chunks) == "xy\n\nz"
    assert message["reasoning"] == text_of(chunks, name="reasoning") == "ab"


def test_log_probabilities_are_one_a_token(writes: Running):
    asked = {"logprobs": True, "top_logprobs": 3, "return_token_ids": True}
    chunks, whole = writes.chat_stream(**asked), writes.chat(**asked)
    streamed = [
        entry
        for choice in deltas(chunks)
        if choice["logprobs"]
        for entry in choice["logprobs"]["content"]
    ]
    (choice,) = whole["choices"]
    content = choice["logprobs"]["content"]
    assert [e["token"] for e in streamed] == [e["token"] for e in content]
    ids = [i for c in deltas(chunks) for i in c.get("token_ids", ())]
    assert ids == choice["token_ids"] and len(ids) == len(content) == 13
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert not any("prompt_token_ids" in chunk for chunk in chunks[1:])
    text = b"".join(bytes(entry["bytes"]) for entry in content[:-1])
    assert text.decode() == TEXT
    for entry in content:
        assert entry.keys() == {"token", "logprob", "bytes", "top_logprobs"}
        assert len(entry["top_logprobs"]) == 3 and -1e-3 < entry["logprob"] <= 0
        assert entry["top_logprobs"][0]["token"] == entry["token"]


def test_steps_ride_inside_chunks(writes: Running):
    chunks = writes.chat_stream(n=2)
    told = [chunk["steer"] for chunk in chunks if "steer" in chunk]
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    for choice in range(2):
        steps = [s["step"] for s in told if s["choice"] == choice and "step" in s]
        assert [step["index"] for step in steps] == [0, 1]
        assert {step["author"] for step in steps} <= {"small", "large"}
        (summary,) = [s for s in told if s["choice"] == choice and "step" not in s]
        assert sum(summary["tokens"].values()) == 13


def test_headers_are_for_proxies(writes: Running):
    with writes.client.stream("POST", CHAT, json={**ASKED, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-accel-buffering"] == "no"
        assert "content-encoding" not in response.headers
        response.read()


def test_what_is_refused_is_no_stream(writes: Running):
    assert writes.refused(CHAT, stream=True, **ASKED, max_tokens=5000)["code"]


def test_a_deadline_ends_a_stream_with_an_error(slow: Running):
    raw = slow.raw(CHAT, **ASKED, timeout=0.3)
    *chunks, last = frames_of(raw)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert last["error"]["type"] == "timeout_error"
    assert not any(c["finish_reason"] for chunk in chunks for c in chunk["choices"])
    assert slow.idle()


def test_tokens_that_come_close_together_share_a_frame(tiny: Running):
    asked = {"prompt": "47+36*37-15?\n\n", "max_tokens": 120, "ignore_eos": True, "temperature": 0}
    with running(Engine("tiny"), frames_per_second=50) as server:
        chunks = server.stream("/v1/completions", **asked)
    each = tiny.stream("/v1/completions", **asked)
    few, many = ([c["text"] for chunk in x for c in chunk["choices"]] for x in (chunks, each))
    assert "".join(few) == "".join(many)
    assert len(few) < len(many) / 2
