"""Cut characters, line separators and blank lines, also as OpenAI's own client reads them."""

from __future__ import annotations

import dataclasses
from typing import Any

import openai
import pytest

from engine.serve import answering

from .running import Running

TEXT = "é\n\n😁c\u2028d"  # each byte of a character is a token
ASKED = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(writes: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{writes.url}/v1", api_key="none", max_retries=0)


def test_a_chat(client: openai.OpenAI):
    answer = client.chat.completions.create(model="tiny", messages=ASKED, logprobs=True)
    (choice,) = answer.choices
    assert choice.message.content == TEXT and choice.logprobs.content[0].bytes == [0xC3]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 13


def test_a_stream(client: openai.OpenAI):
    options = {"include_usage": True}
    asked = {"model": "tiny", "messages": ASKED, "stream": True, "stream_options": options}
    *chunks, last = client.chat.completions.create(**asked)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert last.usage.completion_tokens == 13 and last.usage.steer["tokens"]
    steps = [c.steer["step"] for c in chunks if (getattr(c, "steer", None) or {}).get("step")]
    assert [step["index"] for step in steps] == [0, 1]


def test_a_completion(client: openai.OpenAI):
    answer = client.completions.create(model="small", prompt="hi", logprobs=1, max_tokens=2)
    assert answer.choices[0].text == "é" and answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs.tokens == ["bytes:\\xc3", "bytes:\\xa9"]


def test_a_handover_inside_a_character(writes: Running, monkeypatch: pytest.MonkeyPatch):
    """A step of one token each, by the one or the other model: three handovers in an emoji."""
    made = answering.sampling_params

    def one_token_steps(*given: Any) -> Any:
        return dataclasses.replace(made(*given), max_step_tokens=1)

    monkeypatch.setattr(answering, "sampling_params", one_token_steps)
    chunks = writes.chat_stream(n=4)
    inside = 0
    for index in range(4):
        choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        parts = [choice["delta"].get("content") or "" for choice in choices]
        assert "".join(parts) == TEXT and not any("\ufffd" in part for part in parts)
        steps = [c["steer"] for c in chunks if c.get("steer", {}).get("choice") == index]
        authors = [each["step"]["author"] for each in steps if "step" in each]
        assert len(authors) == 13
        # é is tokens 0 and 1, the emoji 3 to 6.
        pairs = [(0, 1), (3, 4), (4, 5), (5, 6)]
        inside += sum(authors[a] != authors[b] for a, b in pairs)
    assert inside >= 2
    whole = writes.chat(n=4)["choices"]
    assert [choice["message"]["content"] for choice in whole] == [TEXT] * 4


def test_an_id_used_again_has_no_memory(writes: Running):
    """The first answers end inside a character."""
    for most in (4, 5, 1):
        writes.chat_stream(request_id="mine", max_tokens=most)
    for _ in range(2):
        chunks = writes.chat_stream(request_id="mine")
        assert {chunk["id"] for chunk in chunks} == {"chatcmpl-mine"}
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == TEXT
    assert writes.idle()
