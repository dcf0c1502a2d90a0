"""POST /v1/chat/completions: whole answers, messages, and what a template reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine import Engine, SamplingParams
from engine.config import TINY

from .running import Running, running

TEXT = "é\n\n😁c\u2028d"
CHAT = "/v1/chat/completions"


def contents(answer) -> list[str]:
    return [choice["message"]["content"] for choice in answer["choices"]]


def test_an_answer(writes: Running):
    answer = writes.chat(model="tiny")
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion" and answer["model"] == "tiny"
    assert answer["id"].startswith("chatcmpl-")
    assert choice["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
    assert choice["finish_reason"] == "stop" and choice["index"] == 0
    usage = answer["usage"]
    assert usage["completion_tokens"] == len(TEXT.replace("\n\n", "x").encode()) + 1  # and the end
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert writes.idle()


def test_raw_unicode(writes: Running):
    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert "é\\n\\n😁c\u2028d".encode() in writes.client.post(CHAT, json=body).content


def test_n_counts_the_prompt_once(writes: Running):
    one, three = writes.chat(n=1), writes.chat(n=3)
    assert contents(three) == [TEXT] * 3
    assert [choice["index"] for choice in three["choices"]] == [0, 1, 2]
    assert three["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
    assert three["usage"]["completion_tokens"] == 3 * one["usage"]["completion_tokens"]


@pytest.mark.parametrize("limit", [1, 4, 5])
def test_max_completion_tokens_wins(writes: Running, limit: int):
    answer = writes.chat(max_completion_tokens=limit, max_tokens=9)
    assert answer["usage"]["completion_tokens"] == limit
    assert answer["choices"][0]["finish_reason"] == "length"


def test_it_counts_thoughts(thinks: Running):
    answer = thinks.chat(max_completion_tokens=3)
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning"]) == ("", "ab")
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_character_cut_in_two_is_one_replacement(writes: Running):
    assert contents(writes.chat(max_tokens=4)) == ["é\n\n\ufffd"]


def test_without_a_limit_it_is_the_rest_of_the_context(writes: Running):
    answer = writes.chat("a" * 233)
    usage = answer["usage"]
    assert usage["total_tokens"] == writes.engine.max_context
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(("text", "more"), [("a" * 400, {}), ("hi", {"max_tokens": 5000})])
def test_too_long(writes: Running, text: str, more: dict):
    messages = [{"role": "user", "content": text}]
    error = writes.refused(CHAT, messages=messages, **more)
    assert error["code"] == "context_length_exceeded"
    assert str(writes.engine.max_context) in error["message"]
    assert writes.idle()


def prompt_text(server: Running, messages: list, **more) -> str:
    """What the model reads."""
    found = server.post("/tokenize", messages=messages, return_token_strs=True, **more)
    assert found["count"] == len(found["tokens"]) and found["max_model_len"] == 256
    return "".join(found["token_strs"])


def test_messages_become_text(writes: Running):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    parts = [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]
    messages = [
        {"role": "developer", "content": "rule"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call], "name": None},
        {"role": "tool", "content": "1", "tool_call_id": "1"},
    ]
    assert prompt_text(writes, messages) == (
        "<|im_start|>system\nrule<|im_end|>\n<|im_start|>user\ntwo parts<|im_end|>\n"
        "<|im_start|>assistant\n[1]<|im_end|>\n<|im_start|>tool\n1<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_message_is_continued(writes: Running):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "so"}]
    text = prompt_text(writes, messages, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nso")
    assert prompt_text(writes, messages, add_generation_prompt=False).endswith("so<|im_end|>\n")


def test_tools_go_to_the_template(writes: Running):
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
    asked = [{"role": "user", "content": "a"}]
    for choice in ("none", "auto"):
        text = prompt_text(writes, asked, tools=tools, tool_choice=choice)
        assert text.startswith("<|im_start|>tool clock<|im_end|>")


def test_effort_switches_thinking(writes: Running):
    asked = [{"role": "user", "content": "a"}]
    assert prompt_text(writes, asked, reasoning_effort="low").endswith("<think>")
    assert prompt_text(writes, asked, reasoning_effort="none").endswith("assistant\n")
    kwargs = {"enable_thinking": True}
    assert prompt_text(writes, asked, chat_template_kwargs=kwargs).endswith("<think>")


USER = {"role": "user", "content": "a"}
BAD_MESSAGES = [
    ({"role": "user", "content": None}, "messages[0]: the content of a user message"),
    ({"role": "wizard", "content": "a"}, "messages[0].role: expected one of system"),
    ({"content": "a"}, "messages[0].role"),
    ({"role": ["user"], "content": "a"}, "messages[0].role"),
    ({"role": "user", "content": ["a"]}, "messages[0]: part 0"),
    ({"role": "user", "content": 5}, "messages[0]: content must be text"),
    (
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
        "messages[0]: tool_calls[0]: arguments",
    ),
    ({"role": "assistant", "tool_calls": [5]}, "messages[0]: tool_calls must be a list"),
]


@pytest.mark.parametrize(("message", "said"), BAD_MESSAGES)
def test_a_bad_message_is_named(writes: Running, message: dict, said: str):
    error = writes.refused(CHAT, messages=[message])
    assert said in error["message"] and error["param"].startswith("messages")
    assert writes.idle()


def test_an_image_is_named_by_its_type(writes: Running):
    content = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]
    error = writes.refused(CHAT, messages=[{"role": "user", "content": content}])
    assert "messages[0]: part 1" in error["message"] and "image_url" in error["message"]


def test_a_template_that_refuses_is_a_400(writes: Running):
    error = writes.refused(CHAT, messages=[{"role": "user", "content": "refuse"}])
    assert "this is refused" in error["message"]


def test_a_pair_without_a_template_says_so(tmp_path: Path):
    for role in ("small", "large"):
        shutil.copytree(TINY / role, tmp_path / role)
        (tmp_path / role / "chat_template.jinja").unlink()
    engine = Engine("custom", small=tmp_path / "small", large=tmp_path / "large")
    with running(engine, policy="small") as server:
        assert "brings no chat template" in server.refused(CHAT, messages=[USER])["message"]


def test_the_embedded_pair_answers_the_last_question(tiny: Running):
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "47+36?"}]
    answer = tiny.post(CHAT, messages=asked, temperature=0)
    (expected,) = tiny.engine.generate(["47+36?\n\n"], SamplingParams(), "steer")
    assert answer["choices"][0]["message"]["content"] == expected.text


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        (
            {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
            "chat_template_kwargs.chat_template",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"best_of": 2}, "best_of"),
        ({"stream": True, "prompt_logprobs": 1, "model": "small"}, "prompt_logprobs"),
    ],
)
def test_what_is_not_built_is_refused(writes: Running, more: dict, param: str):
    assert writes.refused(CHAT, messages=[USER], **more)["param"] == param


def test_a_stop_string_is_cut(writes: Running):
    for stop, text, reason in (
        ("😁c", "é\n\n", "😁c"),
        (["q", "c"], "é\n\n😁", "c"),
        ("d!", TEXT, None),
    ):
        (choice,) = writes.chat(stop=stop)["choices"]
        assert choice["message"]["content"] == text
        assert choice["finish_reason"] == "stop" and choice["stop_reason"] == reason
    (choice,) = writes.chat(stop="c", include_stop_str_in_output=True)["choices"]
    assert choice["message"]["content"] == "é\n\n😁c"


def test_a_stop_token_is_named(writes: Running):
    token = writes.engine.tokenizer.id_of("c")
    (choice,) = writes.chat(stop_token_ids=[token])["choices"]
    assert choice["stop_reason"] == token and choice["finish_reason"] == "stop"


def test_thoughts_have_both_names(thinks: Running):
    message = thinks.chat()["choices"][0]["message"]
    assert message["content"] == "xy\n\nz"
    assert message["reasoning"] == message["reasoning_content"] == "ab"


def test_the_same_id_gives_the_same_text(writes: Running):
    both = [writes.chat(request_id="mine") for _ in range(2)]
    assert both[0]["id"] == both[1]["id"] == "chatcmpl-mine"
    assert contents(both[0]) == contents(both[1]) == [TEXT]
    assert writes.idle()
