"""OpenAI's own client against a real process: what it sends is understood, what comes is read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai
import pydantic
import pytest

from engine import Engine, SamplingParams
from tests.serve.answers.running import running
from tests.serve.answers.slow_engine import SlowEngine
from tests.serve.served import MOST_WAITING, Served

pytestmark = pytest.mark.xdist_group("steer-serve")
QUESTION = "47+36*7-15?"
PROMPT = f"{QUESTION}\n\n"  # what the pair's template makes of it
ASKED: list[Any] = [{"role": "user", "content": QUESTION}]
LONG = {"prompt": PROMPT, "n": 16, "max_tokens": 230, "extra_body": {"ignore_eos": True}}


@pytest.fixture
def client(tiny_process: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_process.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def library() -> Engine:
    """The same pair in this process."""
    return Engine("tiny", device="cpu")


@contextmanager
def load(client: openai.OpenAI, tiny_process: Served) -> Iterator[None]:
    """Eight other answers run for as long as the block does."""
    options: Any = {**LONG, "n": 8, "temperature": 1.0, "stream": True, "model": "tiny"}
    with client.completions.create(**options) as stream:
        next(stream)
        yield
        assert tiny_process.arena()["running"] == 8
    assert tiny_process.idle()


def test_the_names_that_are_served(client: openai.OpenAI):
    models = client.models.list().data
    assert [model.id for model in models] == ["tiny", "small", "large"]
    assert client.models.retrieve("large") == models[2]
    assert models[0].steer["roles"] == ["small", "large"] and models[0].max_model_len == 256
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("gpt-4")
    assert missing.value.code == "model_not_found" and missing.value.param == "model"


ROUTED = {"routing": {"policy": "threshold:max_prob:0.9"}}
WAYS: list[tuple[str, dict[str, Any]]] = [("tiny", {}), ("tiny", ROUTED), ("small", {})]


@pytest.mark.parametrize(("model", "more"), [*WAYS, ("large", {})], ids=str)
def test_texts_are_those_of_the_library(
    client: openai.OpenAI, tiny_process: Served, library: Engine, model: str, more: dict[str, Any]
):
    """Greedy and drawn, alone and beside eight others, whole and streamed."""
    policy = more["routing"]["policy"] if more else {"tiny": "steer"}.get(model, model)
    for drawing in ({"temperature": 0.0}, {"temperature": 1.5, "seed": 7}):
        params = SamplingParams(max_tokens=30, n=2, **drawing)
        expected = [each.text for each in library.generate([PROMPT], params, policy)]
        options = {"model": model, "n": 2, "max_tokens": 30, "extra_body": more, **drawing}
        assert texts(client, options) == [expected] * 3, "alone"
        with load(client, tiny_process):
            assert texts(client, options) == [expected] * 3, "beside others"


def texts(client: openai.OpenAI, options: dict[str, Any]) -> list[list[str]]:
    """Those of a completion, of a chat and of a stream."""
    whole = client.completions.create(prompt=PROMPT, **options)
    chat = client.chat.completions.create(messages=ASKED, **options)
    streamed = ["", ""]
    for chunk in client.chat.completions.create(messages=ASKED, stream=True, **options):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    return [[c.text for c in whole.choices], [c.message.content for c in chat.choices], streamed]


def test_a_chat(client: openai.OpenAI):
    options = {"logprobs": True, "top_logprobs": 3, "temperature": 0}
    answer = client.chat.completions.create(model="tiny", messages=ASKED, **options)
    (choice,) = answer.choices
    text = choice.message.content
    assert choice.message.role == "assistant" and choice.finish_reason == "stop" and text
    entries = choice.logprobs.content
    assert entries.pop().token == "<eos>"
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == text
    assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in entries)
    assert answer.usage.completion_tokens == len(entries) + 1
    assert answer.usage.prompt_tokens == len(QUESTION) + 1
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert answer.object == "chat.completion" and answer.system_fingerprint.startswith("tiny-")


def test_a_stream(client: openai.OpenAI):
    options: Any = {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True}
    answer = client.chat.completions.create(model="tiny", messages=ASKED, temperature=0)
    *chunks, last = client.chat.completions.create(
        model="tiny", messages=ASKED, temperature=0, **options
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.choices[0].message.content
    ends = [chunk.choices[0].finish_reason for chunk in chunks]
    assert ends == [None] * (len(chunks) - 1) + ["stop"]
    logprobs = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert sum(len(each.content) for each in logprobs) == last.usage.completion_tokens
    assert last.choices == [] and last.usage.total_tokens == answer.usage.total_tokens


def test_the_helper_for_streams(client: openai.OpenAI):
    with client.chat.completions.stream(model="tiny", messages=ASKED, n=2, temperature=0) as made:
        deltas = [event.delta for event in made if event.type == "content.delta"]
        done = made.get_final_completion()
    texts = [choice.message.content for choice in done.choices]
    assert texts[0] == texts[1] and len("".join(deltas)) == 2 * len(texts[0])


def test_completions(client: openai.OpenAI):
    options: Any = {"model": "small", "max_tokens": 30, "temperature": 0}
    answer = client.completions.create(prompt=[PROMPT, "1+1?\n\n"], n=2, logprobs=2, **options)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        lists = choice.logprobs
        assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.text_offset)
        assert "".join(lists.tokens).startswith(choice.text)
    texts = ["", ""]
    *chunks, last = client.completions.create(
        prompt=PROMPT, n=2, stream=True, stream_options={"include_usage": True}, **options
    )
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in answer.choices[:2]]
    assert not last.choices and last.usage.completion_tokens == sum(
        len(choice.logprobs.tokens) for choice in answer.choices[:2]
    )


def test_stops(client: openai.OpenAI):
    options: Any = {"model": "tiny", "messages": ASKED, "temperature": 0}
    text = client.chat.completions.create(**options).choices[0].message.content
    stop = text[8:10]
    for stops in (stop, [stop, "never"]):
        (choice,) = client.chat.completions.create(stop=stops, **options).choices
        assert choice.message.content == text[: text.index(stop)]
        assert choice.finish_reason == "stop" and choice.stop_reason == stop
        chunks = client.chat.completions.create(stop=stops, stream=True, **options)
        parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
        assert "".join(parts) == text[: text.index(stop)]


def test_routing_and_the_steer_object(client: openai.OpenAI):
    routing = {"routing": {"policy": "threshold:max_prob:0.9", "max_large_share": 0.6}}
    options: Any = {"model": "tiny", "messages": ASKED, "seed": 3, "extra_body": routing}
    answer = client.chat.completions.create(**options)
    assert answer.steer["policy"] == "threshold:max_prob:0.9"
    steps = answer.steer["choices"][0]["steps"]
    assert sum(step["tokens"] for step in steps) == answer.usage.completion_tokens
    assert sum(answer.usage.steer["tokens"].values()) == answer.usage.completion_tokens
    told: Any = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(**options, **told)
    streamed = [c.steer for c in chunks if "steer" in (c.model_extra or {})]
    opened = [each["step"] for each in streamed if "step" in each]
    names = ("index", "author", "reason", "position")
    assert [[step[n] for n in names] for step in opened] == [[s[n] for n in names] for s in steps]
    assert streamed[-1]["tokens"] == answer.steer["tokens"] == last.usage.steer["tokens"]
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(
            model="tiny", messages=ASKED, extra_body={"routing": {"policy": "luck"}}
        )
    assert wrong.value.param == "routing.policy"


class Sum(pydantic.BaseModel):
    total: int


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def test_what_is_not_built_is_a_clear_error(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.parse(model="tiny", messages=ASKED, response_format=Sum)
    assert wrong.value.param == "response_format" and "not built" in wrong.value.message
    options: Any = {"model": "tiny", "messages": ASKED, "tools": [TOOL]}
    for choice, param in (("required", "tool_choice"), ("auto", "tools")):
        with pytest.raises(openai.BadRequestError) as wrong:
            client.chat.completions.create(**options, tool_choice=choice)
        assert wrong.value.param == param, "the template reads no tools"


def test_errors_have_their_classes(client: openai.OpenAI):
    chat = client.chat.completions
    for create in (chat.create, lambda **asked: [*chat.create(stream=True, **asked)]):
        with pytest.raises(openai.BadRequestError) as long:
            create(model="tiny", messages=ASKED, max_tokens=5000)
        assert long.value.code == "context_length_exceeded" and long.value.param == "max_tokens"
        assert "256" in long.value.message and "5000" in long.value.message
        with pytest.raises(openai.NotFoundError) as missing:
            create(model="gpt-4", messages=ASKED)
        assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as many:
        client.completions.create(model="tiny", prompt=[PROMPT] * (MOST_WAITING + 1))
    assert str(MOST_WAITING) in many.value.message, "no retry would help"


def test_a_wrong_key():
    with running(SlowEngine("tiny"), keys=("the-key",)) as server:
        made = openai.OpenAI(base_url=f"{server.url}/v1", api_key="another")
        with pytest.raises(openai.AuthenticationError) as wrong:
            made.chat.completions.create(model="tiny", messages=ASKED)
        assert wrong.value.code == "invalid_api_key"
        assert made.with_options(api_key="the-key").models.list().data[0].id == "tiny"
        made.close()


def test_a_full_queue_is_tried_again_after_the_time_it_says(
    client: openai.OpenAI, tiny_process: Served
):
    full: Any = {"model": "tiny", "prompt": PROMPT, "n": 16, "max_tokens": 1}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.completions.create, model="tiny", **LONG)
        while not tiny_process.arena()["waiting"]:
            assert not running.done()
        began = time.monotonic()
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(**full)
        assert refused.value.response.headers["retry-after"] == "1"
        patient = client.with_options(max_retries=5)
        raw = patient.completions.with_raw_response.create(**full)
        assert raw.retries_taken >= 1 and time.monotonic() - began >= 1
        assert len(raw.parse().choices) == len(running.result().choices) == 16


def test_headers(client: openai.OpenAI):
    headers = {"X-Request-Id": "mine-1"}
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=ASKED, extra_headers=headers
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.parse()._request_id == "mine-1"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="tiny", prompt="")
    assert wrong.value.request_id.startswith("req-")


def test_a_client_that_waits_no_longer_ends_the_answer(client: openai.OpenAI, tiny_process: Served):
    with pytest.raises(openai.APITimeoutError):
        client.completions.create(model="tiny", **LONG, timeout=0.1)
    assert tiny_process.idle(1.0)
    with client.completions.create(model="tiny", **LONG, stream=True) as stream:
        next(stream)
    assert tiny_process.idle(1.0)


def test_many_coroutines(tiny_process: Served):
    async def main() -> tuple[list[str], str]:
        url = f"{tiny_process.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            chat: Any = {"model": "tiny", "messages": ASKED, "temperature": 0}

            async def streamed() -> str:
                chunks = await client.chat.completions.create(**chat, stream=True)
                return "".join([c.choices[0].delta.content or "" async for c in chunks])

            async def whole() -> str:
                answer = await client.chat.completions.create(**chat)
                return answer.choices[0].message.content or ""

            long = {**LONG, "n": 2}
            cancelled = asyncio.ensure_future(client.completions.create(model="tiny", **long))
            texts = await asyncio.gather(*(each() for each in (streamed, whole) * 4))
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            completion = await client.completions.create(
                model="tiny", prompt=PROMPT, temperature=0, max_tokens=200
            )
            return texts, completion.choices[0].text

    texts, text = asyncio.run(main())
    assert set(texts) == {text}
    assert tiny_process.idle(1.0)
