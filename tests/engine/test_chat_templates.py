"""Chats as the families write them: ids equal those of transformers on templates of each kind.

The templates are ours; each does what its family's published one does with messages: what is taken
out of earlier turns, what is opened for the answer, which roles there are, what is refused.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from engine import SteerError
from engine.text.tokenizer import Tokenizer

from .plain_bpe import write_plain_bpe

# The system's text stands bare; earlier answers lose their thoughts; the answer begins in thought.
R1 = """{%- set found = namespace(system='', asked=false) -%}
{%- for m in messages if m['role'] == 'system' %}
    {%- set found.system = m['content'] %}
{%- endfor -%}
{{- bos_token }}{{ found.system -}}
{%- for m in messages %}
    {%- set found.asked = m['role'] == 'user' %}
    {%- if found.asked %}
        {{- '<|User|>' + m['content'] }}
    {%- elif m['role'] == 'assistant' and m['content'] is not none %}
        {%- set text = m['content'] %}
        {%- if '</think>' in text %}{% set text = text.split('</think>')[-1] %}{% endif %}
        {{- '<|Assistant|>' + text + eos_token }}
    {%- endif %}
{%- endfor -%}
{%- if add_generation_prompt and found.asked %}{{ '<|Assistant|><think>\\n' }}{% endif -%}
"""
# Thoughts stay only after the last question; tools and their calls; thinking can be switched off.
QWEN3 = """{%- set at = namespace(question=-1) %}
{%- for m in messages[::-1] %}
    {%- if at.question < 0 and m.role == 'user' and m.content is string
        and not m.content.startswith('<result>') %}
        {%- set at.question = messages | length - loop.index %}
    {%- endif %}
{%- endfor %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n\\n' }}{% endif %}
    {{- 'Tools:' }}
    {%- for tool in tools %}{{ '\\n' ~ (tool | tojson) }}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set turns = messages[1:] if tools and messages[0].role == 'system' else messages %}
{%- for m in turns %}
    {%- set text = m.content if m.content is string else '' %}
    {%- if m.role == 'assistant' %}
        {%- set thought = m.reasoning_content or '' %}
        {%- if not thought and '</think>' in text %}
            {%- set thought = text.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if thought and messages.index(m) > at.question %}
            {{- '<think>\\n' ~ thought.strip('\\n') ~ '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- text.split('</think>')[-1].lstrip('\\n') }}
        {%- for call in m.tool_calls or [] %}
            {{- '<call>' ~ call.function.name ~ ' ' ~ (call.function.arguments | tojson) }}
            {{- '</call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif m.role == 'tool' %}
        {%- if loop.previtem is not defined or loop.previtem.role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<result>' ~ text ~ '</result>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- else %}
        {{- '<|im_start|>' ~ m.role ~ '\\n' ~ text ~ '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
# Always a system's turn, with a date; contents are trimmed; tools stand before the first question.
LLAMA3 = """{{- bos_token }}
{%- macro head(role) %}{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n' }}{% endmacro %}
{%- set told = messages[0].role == 'system' %}
{{- head('system') ~ 'Today: ' ~ (date_string | default('1 May 2024')) ~ '\\n\\n' }}
{{- (messages[0].content | trim if told else '') ~ '<|eot_id|>' }}
{%- set turns = messages[1:] if told else messages %}
{%- for m in turns %}
    {%- if m.tool_calls is defined %}
        {{- head('assistant') ~ (m.tool_calls[0].function | tojson) }}
    {%- elif m.role == 'tool' %}
        {{- head('ipython') ~ (m.content | tojson) }}
    {%- else %}
        {{- head(m.role) }}
        {%- if tools and loop.first %}{{ (tools | tojson(indent=4)) ~ '\\n\\n' }}{% endif %}
        {{- m.content | trim }}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ head('assistant') }}{% endif %}"""
# No role for a system; question and answer take turns, or the template refuses.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate: user, assistant, user, ...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
FAMILIES = {
    "R1": (
        R1,
        {
            "<s>": True,
            "</s>": True,
            "<|User|>": False,
            "<|Assistant|>": False,
            "<think>": False,
            "</think>": False,
        },
    ),
    "Qwen3": (
        QWEN3,
        {
            "<s>": True,
            "</s>": True,
            "<|im_start|>": True,
            "<|im_end|>": True,
            "<think>": False,
            "</think>": False,
            "<call>": False,
            "</call>": False,
        },
    ),
    "Llama 3": (
        LLAMA3,
        {
            "<s>": True,
            "</s>": True,
            "<|start_header_id|>": True,
            "<|end_header_id|>": True,
            "<|eot_id|>": True,
        },
    ),
    "Mistral": (MISTRAL, {"<s>": True, "</s>": True, "[INST]": True, "[/INST]": True}),
}
SYSTEM = {"role": "system", "content": " Be <b>exact</b> & brief.\n"}
TURNS = [
    {"role": "user", "content": "  Is 1 < 2? "},
    {"role": "assistant", "content": "<think>\nthe rule\n</think>\n\nYes. "},
    {"role": "user", "content": "Grüße 👋\n\n{{ the }}"},
    {"role": "assistant", "content": "<think>\na greeting\n</think>\n\nHello"},
]
CALL = {"type": "function", "function": {"name": "look", "arguments": {"what": "é 'x'", "n": 2}}}
TOOL = {"type": "function", "function": {"name": "look", "description": "<ä>", "parameters": {}}}
CALLED = [
    *TURNS[:3],
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "seen"},
    {"role": "tool", "content": '{"seen": "too"}'},
]


def both(family: str, folder: Path) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    template, added = FAMILIES[family]
    write_plain_bpe(folder, added, bos_token="<s>", eos_token="</s>", chat_template=template)
    return Tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_chats_of_each_family(tmp_path: Path, family: str):
    """With and without a system's message, from one turn to four, open and closed, with tools."""
    ours, theirs = both(family, tmp_path)
    assert ours.chat_template
    system = [] if family == "Mistral" else [[SYSTEM]]
    talks = [[*first, *TURNS[:n]] for first in ([], *system) for n in range(1, 5)]
    if family in ("Qwen3", "Llama 3"):
        talks += [[*first, *CALLED] for first in ([], [SYSTEM])]
    asked = [
        {},
        {"add_generation_prompt": False},
        {"enable_thinking": False},
        {"tools": [TOOL]},
        {"date_string": "2 Jan 2026"},
    ]
    texts = set()
    for talk in talks:
        for variables in asked:
            unread = set(variables) - {"add_generation_prompt"} - ours.chat_template.reads
            if unread:
                with pytest.raises(SteerError, match=f"does not read {unread.pop()}; it reads "):
                    ours.chat(talk, **variables)
                continue
            wanted = {"add_generation_prompt": True} | variables
            ids = theirs.apply_chat_template(talk, return_dict=False, **wanted)
            assert ours.chat(talk, **variables) == ids, (talk, variables)
            texts.add(theirs.decode(ids))
    assert len(texts) >= len(talks)


def test_what_the_templates_do_with_thoughts(tmp_path: Path):
    """They go out of earlier answers; where the answer begins, R1 opens one, Qwen3 if it may."""
    ours, _ = both("R1", tmp_path)
    assert ours.chat_template
    text = ours.chat_template.render([SYSTEM, *TURNS[:3]])
    assert "rule" not in text and text.startswith("<s> Be <b>exact</b> & brief.\n<|User|>")
    assert text.endswith("<|Assistant|><think>\n")
    assert ours.encode(text).count(ours.encode("<think>")[0]) == 1
    ours, _ = both("Qwen3", tmp_path)
    assert ours.chat_template
    text = ours.chat_template.render(TURNS, add_generation_prompt=False)
    assert "rule" not in text and "<think>\na greeting\n</think>\n\nHello" in text
    assert ours.chat_template.render(TURNS[:1]).endswith("<|im_start|>assistant\n")
    closed = ours.chat_template.render(TURNS[:1], enable_thinking=False)
    assert closed.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("talk", [[SYSTEM, *TURNS[:1]], [TURNS[0], TURNS[2]], [TURNS[1]]])
def test_what_mistral_refuses(tmp_path: Path, talk: list):
    """Both refuse it, we in one line."""
    ours, theirs = both("Mistral", tmp_path)
    with pytest.raises(TemplateError, match="roles must alternate"):
        theirs.apply_chat_template(talk, tokenize=False)
    with pytest.raises(SteerError, match="refuses these messages: roles must alternate"):
        ours.chat(talk)
