"""What a conversation may hold: parts, calls of tools, developers; and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError
from transformers import PreTrainedTokenizerFast

from engine import SteerError
from engine.text.chat import ChatTemplate
from engine.text.tokenizer import Tokenizer

from .plain_bpe import write_plain_bpe
from .test_chat_templates import LLAMA3, MISTRAL, QWEN3, R1

# As Qwen2.5: the content as it is, calls of tools after it.
CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools' }}
    {%- for tool in tools %}{{ '\\n' ~ (tool | tojson) }}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{ '\\n' + message.content }}{% endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- set called = tool_call.function or tool_call %}
            {{- '\\n<tool_call>\\n{"name": "' ~ called.name ~ '", "arguments": ' }}
            {{- (called.arguments | tojson) ~ '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
# As DeepSeek's: a content of null tells a call, and the arguments are text that is added to text.
CALLS_AS_TEXT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and m['content'] is none %}"
    "{% for call in m['tool_calls'] %}"
    "{{ '<call>' + call['function']['name'] + '\\n' + call['function']['arguments'] + '</call>' }}"
    "{% endfor %}{% else %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endif %}{% endfor %}"
)
# Four ways to take a content apart.
LOOP = (
    "{% for m in messages %}{{ m['role'] }}:{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{% if part['type'] == 'text' %}<p>{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
MACRO = (
    "{% macro write(given) %}{% if given is string %}{{ given }}{% else %}{% for each in given %}"
    "<p>{{ each.text }}{% endfor %}{% endif %}{% endmacro %}"
    "{% for m in messages %}{{ m.role }}:{{ write(m.content) }}{% endfor %}"
)
CHOSEN = (
    "{% for m in messages %}{% set said = m.content if m.content is string else m['content'] %}"
    "{{ m.role }}:{{ said if said is string else "
    "said | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('|') }}"
    "{% endfor %}"
)
FIRST = (
    "{% for m in messages %}{{ m.role }}:"
    "{{ m.content if m.content is string else m.content[0].text ~ m.content[1:] }}{% endfor %}"
)
TAKE_PARTS = {"loop": LOOP, "macro": MACRO, "chosen": CHOSEN, "first": FIRST}
TAKE_TEXT = {
    "ChatML": CHATML,
    "Qwen3": QWEN3,
    "Llama 3": LLAMA3,
    "Mistral": MISTRAL,
    "R1": R1,
    "calls as text": CALLS_AS_TEXT,
}
HELLO = {"role": "user", "content": "Hello, you"}
CITY = '{"city": "Zürich", "days": [1, 2]}'
READ = {"city": "Zürich", "days": [1, 2]}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}


def text(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": each} for each in texts]


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}], **more}


def ours(template: str, messages: list[Any], **options: Any) -> str:
    return ChatTemplate(template, {"bos_token": "<s>", "eos_token": "</s>"}).render(
        messages, **options
    )


def theirs(folder: Path, template: str, messages: list[Any], **options: Any) -> str:
    write_plain_bpe(folder, {}, chat_template=template, bos_token="<s>", eos_token="</s>")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    options = {"add_generation_prompt": True} | options
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


@pytest.mark.parametrize("template", TAKE_TEXT.values(), ids=TAKE_TEXT)
def test_parts_become_one_text(tmp_path: Path, template: str):
    """What transformers writes of the whole text."""
    talk = [{"role": "user", "content": text("Hel", "lo, ", "you")}]
    assert ours(template, talk) == theirs(tmp_path, template, [HELLO])
    assert ours(template, [{"role": "user", "content": [{"text": "Hello, you"}]}]) == ours(
        template, [HELLO]
    )
    begun = [*talk, {"role": "assistant", "content": text("It", " is")}]
    assert ours(template, begun, continue_final_message=True).endswith("It is")


@pytest.mark.parametrize("template", TAKE_PARTS.values(), ids=TAKE_PARTS)
def test_a_template_that_takes_parts_gets_them(tmp_path: Path, template: str):
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [*text("Hel", "lo"), {"type": "image"}]},
    ]
    assert ours(template, talk) == theirs(tmp_path, template, talk)
    assert "Hel" in ours(template, talk) and "Hello" not in ours(template, talk)
    with pytest.raises(SteerError, match=r"^messages\[1\]: part 2 .* the type 'image_url'"):
        ours(template, [talk[0], {"role": "user", "content": [*text("Hel", "lo"), IMAGE]}])


@pytest.mark.parametrize("given", [CITY, READ], ids=["text", "object"])
@pytest.mark.parametrize("content", [{}, {"content": None}], ids=["absent", "null"])
@pytest.mark.parametrize("name", ["ChatML", "Qwen3", "Llama 3"])
def test_arguments_and_contents_of_calls(tmp_path: Path, name: str, content: Any, given: Any):
    """As transformers writes them of an object, and of no text."""
    template = TAKE_TEXT[name]
    answer = {"role": "tool", "content": "rain"}
    expected = theirs(tmp_path, template, [HELLO, call(READ, content=None), answer])
    assert ours(template, [HELLO, call(given, **content), answer]) == expected
    assert "Zürich" in expected


@pytest.mark.parametrize("content", [{}, {"content": None}], ids=["absent", "null"])
def test_a_template_that_writes_arguments_as_text(tmp_path: Path, content: Any):
    """Transformers leaves null out and fails here: the template asks for it."""
    with pytest.raises(UndefinedError, match="no attribute 'content'"):
        theirs(tmp_path, CALLS_AS_TEXT, [HELLO, call(CITY, content=None)])
    expected = f"user: Hello, you\n<call>weather\n{CITY}</call>"
    assert ours(CALLS_AS_TEXT, [HELLO, call(CITY, **content)]) == expected


def test_calls_without_arguments_and_in_the_short_form():
    none, short = ours(CHATML, [call("")]), {"role": "assistant", "tool_calls": [{}]}
    short["tool_calls"] = [{"name": "weather", "arguments": CITY}]
    assert '"arguments": {}}' in none and ours(CHATML, [short]) == ours(CHATML, [call(READ)])


def test_a_content_that_is_missing():
    """As each template asks: is it defined, is it none, is it a text; or not at all."""
    defined = "{% for m in messages %}{{ m.content if m.content is defined else '-' }}{% endfor %}"
    for template, expected in (
        (defined, "-"),
        ("{% for m in messages %}{{ m.content is none }}{% endfor %}", "True"),
        ("{% for m in messages %}{{ m.content == none }}{% endfor %}", "True"),
        ("{% for m in messages %}{{ '<' + m.content + '>' }}{% endfor %}", "<>"),
        (
            "{% for m in messages %}{{ '-' if m.content is none }}"
            "{{ '<' + m.content + '>' if m.content is string else m.content | length }}"
            "{% endfor %}",
            "<>",
        ),
    ):
        for content in ({}, {"content": None}):
            assert ours(template, [call(READ, **content)]) == expected
    assert ours(defined, [{"role": "assistant", "content": None}]) == "-"


def test_a_developer_is_a_system_where_the_template_knows_none(tmp_path: Path):
    talk = [{"role": "developer", "content": "Be brief."}, HELLO]
    system = [{"role": "system", "content": "Be brief."}, HELLO]
    for folder, template in enumerate((CHATML, QWEN3, LLAMA3)):
        (tmp_path / str(folder)).mkdir()
        assert ours(template, talk) == theirs(tmp_path / str(folder), template, system)
    knows = "{% if messages[0].role == 'developer' %}!{% endif %}{{ messages[0].role }}"
    assert ours(knows, talk) == theirs(tmp_path, knows, talk) == "!developer"


def test_a_role_that_is_unknown_is_left_to_the_template():
    talk = [HELLO, {"role": "narrator", "content": "Night falls."}]
    assert "<|im_start|>narrator\nNight falls." in ours(CHATML, talk)
    with pytest.raises(SteerError, match="refuses these messages: only user and ass") as raised:
        ours(MISTRAL, talk)
    assert raised.value.field == "messages"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "user", "content": None}, "content of a user message must be text, got null"),
        ({"role": "user"}, "content of a user message must be text"),
        ({"role": "system", "content": None}, "content of a system message"),
        ({"role": "developer", "content": None}, "content of a developer message"),
        ({"role": "tool", "content": None}, "content of a tool message"),
        ({"role": "user", "content": 5}, "text or a list of parts, got 5"),
        ({"role": "user", "content": [IMAGE]}, "part 0 .* the type 'image_url'"),
        ({"role": "user", "content": [*text("a"), AUDIO]}, "part 1 .*input_audio"),
        ({"role": "user", "content": ["a"]}, "part 0 has no text"),
        ({"role": "user", "content": [{"type": "text"}]}, "part 0 has no text"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "part 0 has no text"),
        ({"role": 5, "content": "a"}, "a message must be"),
        ({"content": "a"}, "a message must be"),
        ("a" * 9999, "a message must be"),
        (call('{"city": '), r"tool_calls\[0\]: arguments must be a JSON object as text"),
        (call("[1]"), r"tool_calls\[0\]: arguments must be a JSON object"),
        (call('{"a": NaN}'), r"tool_calls\[0\]: arguments must be a JSON object"),
        (call("[" * 99999), r"tool_calls\[0\]: arguments must be a JSON object"),
        ({"role": "assistant", "tool_calls": "x"}, "tool_calls must be a list of objects"),
        ({"role": "assistant", "tool_calls": [{"function": 1}]}, "function must be an object"),
    ],
)
def test_what_is_refused(message: Any, said: str):
    """In one short line, with the message's index."""
    for template in (CHATML, LOOP):
        with pytest.raises(SteerError, match=rf"^messages\[1\]: .*{said}") as raised:
            ours(template, [HELLO, message])
        told = str(raised.value)
        assert raised.value.field == "messages" and "\n" not in told and len(told) < 300


def test_fields_of_the_other_errors(tmp_path: Path):
    tokenizer = Tokenizer(write_plain_bpe(tmp_path, {}, chat_template=CHATML))
    for options, field in (
        ({"chat_template": "none such"}, "chat_template"),
        ({"chat_template": "{% if %}"}, "chat_template"),
        ({"chat_template": 5}, "chat_template"),
        ({"tools": 5}, "tools"),
        ({"documents": [{"text": "x"}]}, "documents"),
        ({"mood": "glad"}, "mood"),
        ({"continue_final_message": "thinking"}, "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ):
        with pytest.raises(SteerError) as raised:
            tokenizer.chat([HELLO], **options)
        assert raised.value.field == field, options
    for messages in ([], "hi", [{"role": "user", "content": object()}]):
        with pytest.raises(SteerError) as raised:
            tokenizer.chat(messages)
        assert raised.value.field == "messages"


def test_the_callers_messages_stay_as_they_are():
    talk = [{"role": "developer", "content": text("a", "b")}, call(CITY)]
    before = copy.deepcopy(talk)
    ours(CHATML, talk)
    assert talk == before
