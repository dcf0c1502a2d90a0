"""OpenAI's own client reads cut characters, line separators and blank lines."""

from __future__ import annotations

import openai
import pytest

from .running import Running

TEXT = "é\n\n😁c\u2028d"
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
