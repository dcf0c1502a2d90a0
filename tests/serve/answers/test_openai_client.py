"""OpenAI's own client reads everything: answers, streams, errors, and the extension."""

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
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer.steer["policy"] == "random:0.5"


def test_a_stream(client: openai.OpenAI):
    options = {"include_usage": True}
    asked = {"model": "tiny", "messages": ASKED, "stream": True, "stream_options": options}
    *chunks, last = client.chat.completions.create(**asked)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert last.usage.completion_tokens == 13 and last.usage.steer["tokens"]
    steps = [c.steer["step"] for c in chunks if (getattr(c, "steer", None) or {}).get("step")]
    assert [step["index"] for step in steps] == [0, 1]


def test_the_helper_for_streams(client: openai.OpenAI):
    with client.chat.completions.stream(model="tiny", messages=ASKED, n=2) as stream:
        done = [*stream] and stream.get_final_completion()
    assert [choice.message.content for choice in done.choices] == [TEXT, TEXT]


def test_a_completion(client: openai.OpenAI):
    answer = client.completions.create(model="small", prompt="hi", logprobs=1, max_tokens=2)
    assert answer.choices[0].text == "é" and answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs.tokens == ["bytes:\\xc3", "bytes:\\xa9"]


def test_errors(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=ASKED)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=5000)
    assert long.value.code == "context_length_exceeded" and long.value.param
