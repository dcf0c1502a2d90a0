"""Templates that run for ever or write without end: one clear line, in little time and memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from engine import SteerError
from engine.cli import main
from engine.text import template_limits
from engine.text.chat import ChatTemplate

from .test_conversation import chat_pair

TALK = [{"role": "user", "content": "hi"}]
NEVER = "{% for a in range(99999) %}{% for b in range(99999) %}BODY{% endfor %}{% endfor %}"
WRITES = NEVER.replace("BODY", "x" * 999)
REPEATED = (
    "{% set n = namespace(l=[1], m=[1]) %}"
    "{% for i in range(60) %}{% set n.l = [n.l, n.l] %}{% set n.m = [n.m, n.m] %}{% endfor %}"
)
MANY = "{% set n = namespace(s='xx', l=[]) %}{% for i in range(99999) %}BODY{% endfor %}"
ENDLESS = {
    "loops": NEVER.replace("BODY", ""),
    "loops without a pass": NEVER.replace("b in range(99999)", "b in range(99999) if false"),
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "sorting": MANY.replace("BODY", "{% set a = range(99999) | sort %}"),
    "lists in lists": REPEATED + "{{ n.l }}",
    "lists in lists as JSON": REPEATED + "{{ n.l | tojson }}",
    "lists in lists compared": REPEATED + "{{ n.l == n.m }}",
    "lists in lists looked for": REPEATED + "{{ [n.m].index(n.l) }}",
}
VAST = {
    "loops": WRITES,
    "a macro": "{% macro f() %}" + WRITES + "{% endmacro %}{{ f() }}",
    "a set block": "{% set x %}" + WRITES + "{% endset %}",
    "doubling": MANY.replace("BODY", "{% set n.s = n.s ~ n.s %}"),
    "adding": MANY.replace("BODY", "{% set n.s = n.s + n.s %}"),
    "many lists": MANY.replace("BODY", "{% set n.l = [n.l, range(99999) | list] %}"),
    "slices": "{% set s = 'x' * 9999999 %}" + MANY.replace("BODY", "{% set n.l = [n.l, s[i:]] %}"),
    "times": "{{ 'x' * 10000000000 }}",
    "times turned": "{{ 10000000000 * [1] }}",
    "replace": "{% set s = 'x' * 99999 %}{{ s.replace('x', s) }}",
    "replace as a filter": "{% set s = 'x' * 99999 %}{{ s | replace('x', s) }}",
    "join": "{% set s = 'x' * 99999 %}{{ s.join(range(99999) | map('string')) }}",
    "join as a filter": "{% set s = 'x' * 99999 %}{{ range(99999) | join(s) }}",
    "center": "{{ 'x' | center(10000000000) }}",
    "indent": "{{ 'x' | indent(10000000000, true) }}",
    "JSON": "{{ [1] | tojson(indent=10000000000) }}",
}
WIDE = {
    "ljust": "{{ 'x'.ljust(10000000000) }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "percent with a name": "{{ '%(a)10000000000d' % {'a': 1} }}",
    "percent with a star": "{{ '%*d' % (10000000000, 1) }}",
    "percent as a filter": "{{ '%.10000000000f' | format(1) }}",
    "format": "{{ '{:10000000000}'.format(1) }}",
    "format of a format": "{{ '{:{}}'.format(1, '10000000000') }}",
}


def refusal(template: str) -> str:
    with pytest.raises(SteerError) as error:
        ChatTemplate(template, {}).render(TALK)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_ends(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr(template_limits, "SECONDS", 0.3)
    begun = monotonic()
    assert refusal(ENDLESS[name]) == "the chat template runs for more than 0.3 seconds"
    assert monotonic() - begun < 3


@pytest.mark.parametrize("name", VAST)
def test_what_writes_without_end_ends(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr(template_limits, "SECONDS", 60)
    monkeypatch.setattr(template_limits, "CHARACTERS", 20_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(VAST[name]) == "the chat template makes more than 20000000 characters of text"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


@pytest.mark.parametrize("name", WIDE)
def test_wide_fields(name: str):
    assert "the chat template asks for text " in refusal(WIDE[name])


def test_numbers_and_what_is_left_out():
    large = "a number of more than 10000 bits"
    assert large in refusal("{{ 9 ** (9 ** 9) }}")
    squares = "{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}"
    assert large in refusal("{% set n = namespace(x=9) %}" + squares)
    assert "sums what are no numbers" in refusal("{{ [[1], [2]] | sum(start=[]) }}")
    assert "attribute 'to_bytes'" in refusal("{{ (1).to_bytes(10000000000, 'big') }}")
    assert "'lipsum' is undefined" in refusal("{{ lipsum(n=10000000000) }}")
    assert "RecursionError" in refusal("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")
    assert "malformed: it is nested too deeply" in refusal("{{" + "(" * 9999 + "1" + ")" * 9999)
    assert "malformed: too many" in refusal("{% for a in b %}" * 60 + "{% endfor %}" * 60)


def test_a_template_computes_nothing_before_it_is_used():
    """Jinja computes constants while it compiles, where nothing bounds it."""
    template = "{{ 'x' * 10000000000 }}{{ 'x' | center(10000000000) }}{% set a = 9 ** (9 ** 9) %}"
    code = f"from engine.text.chat import ChatTemplate; ChatTemplate({template!r}, {{}})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


ORDINARY = """{% macro boxed() %}[{{ caller('in') }}]{% endmacro %}
{%- macro head(m) %}<{{ m.role ~ '|' ~ number }}>{% endmacro %}
{%- set number = 3 %}{{ '**%s** %5.2f%%' % ('a', 1.5) }}{{ '%(a)s (1000000) %(a)3d' % {'a': 7} }}
{{- '{:*^10} {{x}} {!r}'.format('b', 'c') }}{{ '{' ~ missing ~ none ~ '}' }}{{ missing }}{{ none }}
{%- for m in messages[::-1] if m.content is string %}
  {{- head(m) }}{{ loop.index ~ loop.length ~ loop.last ~ loop.cycle('a', 'b') }}
  {%- if loop.previtem is defined and loop.previtem.role == m.role %}{{ messages.index(m) }}
  {%- endif %}
  {{- m.content[:3] ~ m.content[-2:] + m.content[1:-1] }}
  {%- if m.content[5:] == '' %}{% continue %}{% endif %}
  {%- generation %}{{ m.content | replace('a', 'bb') | indent(2) | trim | upper }}
  {%- endgeneration %}
{%- else %}none{% endfor %}
{{- messages | map(attribute='role') | unique | list | join(', ') }}{{ 2 * 3 ** 2 }}{{ 10 % 4 }}
{%- set kept = namespace(x=[], self=1) %}{% set kept.x = kept.x + [{'a': 1.5}] * 2 %}{{ kept.x }}
{{- kept.x | tojson(indent=2) }}{{ dict(a=1).items() | list }}{{ 'a' in 'abc' }}{{ [1, 2] | sum }}
{{- 'x' | center(5) }}{{ '%s-%s' | format('p', 'q') }}{{ 'a,b'.split(',') }}{{ ','.join(['p']) }}
{%- set block %}inner {{ messages | length }}{% endset %}{{ block }}{{ 'z'.replace('z', 'y') }}
{%- filter upper %}shout{% endfilter %}{% call(x) boxed() %}{{ x }}{% endcall %}{{ 1 < 2 < 3 }}
{%- for k, v in {'b': [1, [2]], 'a': {}} | dictsort recursive %}{{ k }}{{ v }}{% endfor %}
"""


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_limits_change_no_text(length: int):
    talk = [
        {"role": "user", "content": "a cat\n\nand <b>"},
        {"role": "user", "content": "abc"},
        {"role": "assistant", "content": "ä banana"},
    ][:length]
    (expected,), _ = render_jinja_template([talk], chat_template=ORDINARY)
    assert ChatTemplate(ORDINARY, {}).render(talk, add_generation_prompt=False) == expected
    assert f"inner {length}" in expected and "A CBBT" not in expected and "SHOUT[in]" in expected


def test_long_chats_are_not_refused():
    """Text that a template adds up message by message grows with the square of their number."""
    template = (
        "{% set n = namespace(text='') %}{% for m in messages %}"
        "{% set n.text = n.text + m.content %}{% endfor %}{{ n.text }}"
    )
    talk = [{"role": "user", "content": "word " * 100}] * 1000
    assert ChatTemplate(template, {}).render(talk) == "word " * 100_000


def test_a_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = chat_pair(tmp_path, "{{ 'x' * 10000000000 }}")
    assert main(["generate", *folders, "--policy=small", "--chat", "4+3?"]) == 2
    error = capsys.readouterr().err
    assert "the chat template makes more than 64000000 characters" in error
    assert error.count("\n") == 1
