"""A page of folder layouts, each read and run as transformers does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import AutoTokenizer

from engine import Engine, SamplingParams, SteerError

from .hard_text import HARD
from .layouts import TURN, Layout, greedy, lay_out, save_model, save_tokenizer

QWEN2, QWEN3 = Layout("qwen2", "qwen"), Layout("qwen3", "qwen")
LLAMA3 = Layout("llama", "llama3")
LLAMA2, MISTRAL = Layout("llama", "pieces", "model"), Layout("mistral", "pieces", "both")
GENERATION, TOKENIZER = "generation_config.json", "tokenizer_config.json"
LAYOUTS = {
    "qwen2": QWEN2,
    "qwen2 sharded": replace(QWEN2, weights="sharded", end=GENERATION),
    "qwen2 end of the tokenizer": replace(QWEN2, end=TOKENIZER),
    "qwen2 base": replace(QWEN2, template="none"),
    "qwen3": replace(QWEN3, template="chat_template.jinja"),
    "qwen3 named templates": replace(QWEN3, template="list in tokenizer_config.json"),
    "qwen3 further templates": replace(QWEN3, template="additional_chat_templates"),
    "qwen3 two templates": replace(
        QWEN3, template="chat_template.jinja before tokenizer_config.json"
    ),
    "qwen3 fp8": replace(QWEN3, weights="fp8 blocks", end=GENERATION),
    "llama 3": LLAMA3,
    "llama 3 sharded": replace(LLAMA3, weights="sharded", template="chat_template.jinja"),
    "llama 3 gptq": replace(LLAMA3, weights="gptq", end=TOKENIZER),
    "llama 3 awq": replace(LLAMA3, weights="awq"),
    "llama 3 fp8": replace(LLAMA3, weights="fp8"),
    "llama 3 compressed": replace(LLAMA3, weights="packed"),
    "llama 3 end of the tokenizer": replace(LLAMA3, end=TOKENIZER),
    "llama 2 tokenizer.model": LLAMA2,
    "llama 2 both": replace(LLAMA2, files="both", end=GENERATION),
    "llama 2 tokenizer.json": replace(LLAMA2, files="json", end=TOKENIZER),
    "mistral both": MISTRAL,
    "mistral tokenizer.model": replace(MISTRAL, files="model", template="chat_template.jinja"),
    "mistral processor's template": replace(MISTRAL, template="chat_template.json"),
}
# A tokenizer reads no template from a processor's file.
CHATS = [n for n, each in LAYOUTS.items() if each.template not in ("none", "chat_template.json")]
PROMPT = "the quick brown fox jumps"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Why is the sky blue?\n"},
    {"role": "assistant", "content": "Rayleigh, naïvely."},
    {"role": "user", "content": "1+1?"},
]
CONTINUED = [*CHAT, {"role": "assistant", "content": "It is  2, as"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Naïve <guess> & more",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


class Made(NamedTuple):
    """An engine over a folder, transformers' tokenizer and model, the id that ends an answer."""

    engine: Engine
    tokenizer: Any
    model: Any
    end: int


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """``made(name)``: layouts that differ in small files alone share tokenizers and weights."""

    @cache
    def tokenizer(kind: str) -> tuple[Path, list[int], int, int]:
        folder = tmp_path_factory.mktemp(kind)
        save_tokenizer(kind, folder)
        theirs = AutoTokenizer.from_pretrained(folder)
        end = theirs.convert_tokens_to_ids(TURN[kind])
        return folder, theirs(PROMPT)["input_ids"], len(theirs), end

    @cache
    def model(layout: Layout) -> tuple[Path, Any]:
        folder = tmp_path_factory.mktemp("weights")
        return folder, save_model(layout, folder, *tokenizer(layout.tokenizer)[1:])

    @cache
    def layout_of(name: str) -> Made:
        layout = LAYOUTS[name]
        files, _, _, end = tokenizer(layout.tokenizer)
        alone = Layout(layout.family, layout.tokenizer, weights=layout.weights)
        weights, theirs = model(alone)
        place = tmp_path_factory.mktemp("folder")
        folder = readable = lay_out(layout, place / "model", files, weights)
        if layout.files == "model":  # reading it needs a package more
            readable = lay_out(replace(layout, files="both"), place / "both", files, weights)
        engine = Engine("custom", small=folder, large=folder)
        return Made(engine, AutoTokenizer.from_pretrained(readable), theirs, end)

    return layout_of


@pytest.mark.parametrize("name", LAYOUTS)
def test_ids_of_a_hard_page(name: str, made: Callable[[str], Made]):
    engine, theirs, _, _ = made(name)
    for text in HARD:
        assert engine.tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False), text
        assert engine.tokenizer.encode(text, special=True) == theirs.encode(text), text


@pytest.mark.parametrize("name", LAYOUTS)
def test_ids_of_a_chat(name: str, made: Callable[[str], Made]):
    engine, theirs, _, _ = made(name)
    if theirs.chat_template is None:
        with pytest.raises(SteerError, match="brings no chat template"):
            engine.tokenizer.chat(CHAT)
        return
    for begins in (True, False):
        text = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=begins)
        expected = theirs.encode(text, add_special_tokens=False)
        assert engine.tokenizer.chat(CHAT, add_generation_prompt=begins) == expected


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize(
    "options",
    [
        {"tools": [TOOL], "add_generation_prompt": True},
        {"continue_final_message": True, "messages": CONTINUED},
        {"continue_final_message": True, "messages": CONTINUED, "tools": [TOOL]},
    ],
    ids=["tools", "continued", "continued with tools"],
)
def test_ids_of_a_chat_with_options(
    name: str, options: dict[str, Any], made: Callable[[str], Made]
):
    engine, theirs, _, _ = made(name)
    messages = options.get("messages", CHAT)
    given = {key: value for key, value in options.items() if key != "messages"}
    text = theirs.apply_chat_template(messages, tokenize=False, **given)
    expected = theirs.encode(text, add_special_tokens=False)
    assert engine.chat(messages, **given) == expected


@pytest.mark.parametrize("name", LAYOUTS)
def test_greedy_text_and_its_end(name: str, made: Callable[[str], Made]):
    engine, theirs, model, end = made(name)
    prompt = theirs(PROMPT)["input_ids"]
    params = SamplingParams(24)
    (done,) = engine.generate([PROMPT], params, "large")
    expected = greedy(model, prompt, 24, [end])
    assert list(done.prompt_token_ids) == prompt
    assert list(done.token_ids) == expected and expected[-1] == end
    assert done.finish_reason == "stop"
    whole = theirs.decode([*prompt, *expected], skip_special_tokens=True)
    text = whole.removeprefix(theirs.decode(prompt, skip_special_tokens=True))
    if "\ufffd" not in text:  # bytes that are no character: each library shows them in its own way
        assert done.text == text
    (longer,) = engine.generate([PROMPT], replace(params, ignore_eos=True), "large")
    assert list(longer.token_ids) == greedy(model, prompt, 24, [])
