"""Which template writes a chat, what it is given, and how it ends: as transformers does it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from transformers import PreTrainedTokenizerFast

from engine import AsyncEngine, Engine, EngineConfig, Prompt, SteerError
from engine.text.tokenizer import Tokenizer

from .gguf_files import KINDS, TOKENS, add_tokenizer
from .other_pieces import OtherPieces
from .plain_bpe import write_plain_bpe
from .test_conversation import chat_pair

TALK = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
OPEN = "{% if add_generation_prompt %}[assistant] {% endif %}"
TOOLS = "{% for tool in tools %}{{ tool.function.name }}>{% endfor %}" + TALK + OPEN
DOCUMENTS = "{% for d in documents %}{{ d.title }}: {{ d.text }}|{% endfor %}" + TALK
NAMED = {"default": TALK + OPEN, "tool_use": TOOLS, "rag": DOCUMENTS}
NOW = {"type": "function", "function": {"name": "now", "parameters": {}}}
ASKED = [{"role": "user", "content": "the time?"}]
BEGUN = [*ASKED, {"role": "assistant", "content": "It is "}]

Pair = tuple[Tokenizer, PreTrainedTokenizerFast]


def listed(templates: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "template": text} for name, text in templates.items()]


def checkpoint(folder: Path, form: str, templates: Mapping[str, str] = NAMED) -> Path:
    """A tokenizer whose templates are in the config, in files, or in files and the config."""
    folder.mkdir(exist_ok=True)
    config: dict[str, Any] = {"eos_token": "</s>"}
    if form in ("list", "object"):
        config["chat_template"] = listed(templates) if form == "list" else dict(templates)
    elif form == "files over a config":
        config["chat_template"] = listed(dict.fromkeys([*templates, "gone"], "old"))
    write_plain_bpe(folder, {"</s>": True}, **config)
    if form.startswith("files"):
        more = folder / "additional_chat_templates"
        more.mkdir(exist_ok=True)
        for name, text in templates.items():
            default = folder / "chat_template.jinja"
            (default if name == "default" else more / f"{name}.jinja").write_text(text)
    return folder


def both(folder: Path) -> Pair:
    return Tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("form", ["list", "object", "files", "files over a config"])
def test_the_template_is_chosen_as_in_transformers(tmp_path: Path, form: str):
    ours, theirs = both(checkpoint(tmp_path, form))
    options: list[dict[str, Any]] = [
        {},
        {"tools": [NOW]},
        {"tools": [NOW], "chat_template": "tool_use"},
        {"chat_template": "rag", "documents": [{"title": "t", "text": "x"}]},
        {"tools": [NOW], "chat_template": TOOLS + "!"},
        {"tools": []},
    ]
    texts = set()
    for wanted in options:
        text = theirs.apply_chat_template(
            ASKED, tokenize=False, add_generation_prompt=True, **wanted
        )
        ids = ours.chat(ASKED, **wanted)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], wanted
        texts.add(text)
    assert texts == {
        "[user] the time?</s>[assistant] ",
        "now>[user] the time?</s>[assistant] ",
        "t: x|[user] the time?</s>",
        "now>[user] the time?</s>[assistant] !",
    }


def test_a_checkpoint_without_a_default(tmp_path: Path):
    """Refused by both where the default is wanted; with tools, or by name, it works."""
    ours, theirs = both(checkpoint(tmp_path, "files", {"tool_use": TOOLS, "rag": DOCUMENTS}))
    assert ours.chat_template is None and len(ours.chat_templates) == 2
    with pytest.raises(ValueError, match="no default"):
        theirs.apply_chat_template(ASKED)
    with pytest.raises(SteerError, match=r"no chat template is named 'default'.* rag, tool_use"):
        ours.chat(ASKED)
    assert ours.decode(ours.chat(ASKED, [NOW])).startswith("now>[user]")


def test_a_text_works_without_a_template(tmp_path: Path):
    tokenizer = Tokenizer(write_plain_bpe(tmp_path, {"</s>": True}, eos_token="</s>"))
    for wanted in (None, "default", "tool_use"):
        with pytest.raises(SteerError, match=f"{tmp_path}: the checkpoint brings no chat template"):
            tokenizer.chat(ASKED, chat_template=wanted)
    assert tokenizer.chat(ASKED, chat_template=TALK)[-1] == tokenizer.id_of("</s>")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat_template": "tool_us"}, "'tool_us'; chat_template= takes one of broken, default"),
        ({"chat_template": 5}, "must be a name or a template's text, got 5"),
        ({"chat_template": "{% if %}"}, "^the chat template is malformed"),
        ({"chat_template": "broken"}, "'broken': the chat template is malformed"),
        (
            {"enable_thinkin": False},
            "does not read enable_thinkin; it reads add_generation_prompt,",
        ),
        ({"tokenize": False, "b": 1}, "does not read b, tokenize; it reads"),
        ({"documents": [{"text": "x"}]}, "does not read documents; it reads"),
        ({"chat_template": "rag", "tools": [NOW]}, "does not read tools; it reads documents, eos"),
        (
            {"chat_template": "rag", "documents": "x"},
            "documents must be a list of objects, got 'x'",
        ),
        ({"tools": [3]}, "tools must be a list of objects"),
    ],
)
def test_what_no_template_reads_is_refused(tmp_path: Path, options: dict[str, Any], message: str):
    ours = Tokenizer(checkpoint(tmp_path, "list", {**NAMED, "broken": "{% for %}"}))
    with pytest.raises(SteerError, match=message) as error:
        ours.chat(ASKED, **options)
    assert "\n" not in str(error.value)


def test_a_special_token_and_a_default_of_the_template_can_be_given(tmp_path: Path):
    template = "{% if not mood is defined %}{% set mood = 'calm' %}{% endif %}{{ mood }}" + TALK
    ours, theirs = both(checkpoint(tmp_path, "list", {"default": template}))
    for options in ({}, {"mood": "glad"}, {"eos_token": "."}):
        text = theirs.apply_chat_template(ASKED, tokenize=False, **options)
        assert ours.chat(ASKED, **options) == ours.encode(text)


def test_templates_of_a_config_that_are_none(tmp_path: Path):
    for wrong in (5, ["x"], [{"name": "default"}], {"default": 1}):
        write_plain_bpe(tmp_path, {}, chat_template=wrong)
        with pytest.raises(SteerError, match="chat_template must be text, or a list of"):
            Tokenizer(tmp_path)


def test_templates_of_a_gguf_file(tmp_path: Path):
    """gguf-py writes a list of named templates under keys of their own."""
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "qwen2")
    add_tokenizer(writer, TOKENS, KINDS, "qwen2", template=listed(NAMED))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer = Tokenizer(path)
    assert tokenizer.chat_templates.choose(has_tools=True).source == TOOLS
    assert tokenizer.chat_template and tokenizer.chat_template.source == NAMED["default"]
    assert tokenizer.chat_templates.choose("rag").source == DOCUMENTS


# The last message goes on.

THINKING = (
    "{% for m in messages %}{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content | trim if m.content is string else m.content[0].text }}</s>"
    "{% endfor %}"
)
THOUGHT = {"role": "assistant", "content": "", "reasoning": "6 times 7 is "}
BLOCKS = {"role": "assistant", "content": [{"type": "text", "text": "It "}, {"type": "image"}]}


@pytest.mark.parametrize(
    ("template", "last", "wanted", "end"),
    [
        (TALK, {"role": "assistant", "content": "It is "}, True, "It is "),
        (TALK, {"role": "assistant", "content": "It is "}, "content", "It is "),
        (TALK, {"role": "user", "content": "is it"}, True, "is it"),
        (THINKING, {"role": "assistant", "content": "It is  "}, True, "It is"),
        (THINKING, {"role": "assistant", "content": " "}, True, "the time?</s>"),
        (THINKING, THOUGHT, "reasoning_content", "<think>6 times 7 is "),
        (THINKING, THOUGHT, "reasoning", "<think>6 times 7 is "),
        (THINKING, BLOCKS, True, "It "),
    ],
)
def test_the_last_message_is_continued(
    tmp_path: Path, template: str, last: dict[str, Any], wanted: bool | str, end: str
):
    ours, theirs = both(checkpoint(tmp_path, "list", {"default": template}))
    text = theirs.apply_chat_template([*ASKED, last], tokenize=False, continue_final_message=wanted)
    ids = ours.chat([*ASKED, last], continue_final_message=wanted)
    assert text.endswith(end) and ids == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("template", "talk", "options", "message"),
    [
        (TALK, BEGUN, {"add_generation_prompt": True}, "give one of them"),
        ("{{ messages[0].content }}", BEGUN, {}, "does not write the last message"),
        (
            "{% for m in messages %}{{ m.content.split('x')[-1] }}{% endfor %}",
            [*ASKED, {"role": "assistant", "content": "axb"}],
            {},
            "does not write the last message",
        ),
        (TALK, [*ASKED, {"role": "assistant"}], {}, "last message has no text in 'content'"),
        (TALK, [*ASKED, {"role": "assistant", "content": None}], {}, "no text in 'content'"),
        (TALK, [*ASKED, {"role": "assistant", "content": [{"a": 1}]}], {}, "no text in 'content'"),
        (TALK, [*ASKED, THOUGHT], {"continue_final_message": "thinking"}, "reads no 'thinking'"),
        (TALK, [], {}, "messages must be a list"),
    ],
)
def test_what_cannot_be_continued(
    tmp_path: Path, template: str, talk: list, options: dict[str, Any], message: str
):
    """Both refuse it."""
    ours, theirs = both(checkpoint(tmp_path, "list", {"default": template}))
    options = {"continue_final_message": True} | options
    with pytest.raises(ValueError):
        theirs.apply_chat_template(talk, tokenize=False, **options)
    with pytest.raises(SteerError, match=message):
        ours.chat(talk, **options)


# The same through an engine, with one template and with two, and through its asyncio face.


def engine_with(folder: Path, sources: tuple[Path, Path], templates: tuple[str, str]) -> Engine:
    for role, source, template in zip(("small", "large"), sources, templates, strict=True):
        shutil.copytree(source, folder / role)
        config = {
            "chat_template": listed({"default": template, "other": "{{ messages | length }}"})
        }
        (folder / role / "tokenizer_config.json").write_text(json.dumps(config))
    return Engine(
        "custom",
        small=folder / "small",
        large=folder / "large",
        config=EngineConfig(retokenize=True),
    )


def test_an_engine_takes_the_same(tmp_path: Path):
    folders = chat_pair(tmp_path)
    engine = Engine("custom", small=folders[1].split("=")[1], large=folders[2].split("=")[1])
    talk = [{"role": "user", "content": "47+36"}, {"role": "assistant", "content": "4"}]
    ids = engine.chat(talk, continue_final_message=True)
    assert ids == engine.tokenizer.encode("47+364")

    async def served() -> list[int] | Prompt:
        async with AsyncEngine(engine) as face:
            with pytest.raises(SteerError, match="does not read mood; it reads"):
                await face.chat(talk, mood=1)
            return await face.chat(talk, continue_final_message=True)

    assert asyncio.run(served()) == ids
    with pytest.raises(SteerError, match="does not read mood; it reads"):
        engine.chat(talk, mood=1)


@pytest.fixture(scope="module")
def other_pieces(tmp_path_factory: pytest.TempPathFactory) -> OtherPieces:
    return OtherPieces(tmp_path_factory.mktemp("pieces"))


def test_what_one_of_two_templates_reads_is_taken(tmp_path: Path, other_pieces: OtherPieces):
    write = "{% for m in messages %}{{ m.content }}{% endfor %}"
    templates = write, "{{ head }}" + write
    engine = engine_with(tmp_path, other_pieces.folders, templates)
    small, large = other_pieces.tokenizers
    talk = [{"role": "user", "content": "abc"}]

    def texts(**options: Any) -> tuple[str, str]:
        prompt = engine.chat(talk, **options)
        assert isinstance(prompt, Prompt)
        return small.text_of(prompt.small), large.text_of(prompt.large)

    assert texts(head="22") == ("abc", "22abc")
    assert texts(chat_template="other") == ("1", "1")
    assert texts(chat_template=write + "1", continue_final_message=True) == ("abc", "abc")
    with pytest.raises(SteerError, match=re.escape("does not read mood; it reads head, messages")):
        engine.chat(talk, mood=1)
