"""The parts of answers by themselves, on what models rarely write."""

from __future__ import annotations

import math
import random

import orjson
import pytest

from engine.request import TokenLogprobs
from engine.serve.logprobs import CompletionLogprobs, chat_logprobs
from engine.serve.reasoning import ReasoningSplitter, opens_thinking, split_reasoning

from .running import Running

ANSWERS = [
    ("<think>a</think>b", False, ("a", "b")),
    (" \n<think>a</think>b</think>", False, ("a", "b</think>")),
    ("a</think>b", False, ("", "a</think>b")),
    ("a</think>b", True, ("a", "b")),
    ("<think>a</think>b", True, ("a", "b")),
    ("a</thin", True, ("a</thin", "")),
    ("<thin", False, ("", "<thin")),
    ("  ", False, ("", "  ")),
    ("x <think>a</think>", False, ("", "x <think>a</think>")),
    ("a<</think>b", True, ("a<", "b")),
    ("", True, ("", "")),
]


@pytest.mark.parametrize(("text", "thinking", "parts"), ANSWERS)
def test_thoughts_are_apart_however_the_text_is_cut(text: str, thinking: bool, parts: tuple):
    assert split_reasoning(text, thinking) == parts
    draw = random.Random(text)
    for _ in range(50):
        splitter, at = ReasoningSplitter(thinking), 0
        taken = []
        while at < len(text):
            size = draw.randint(1, 3)
            taken.append(splitter.take(text[at : at + size]))
            at += size
        taken.append(splitter.finish())
        assert ("".join(t[0] for t in taken), "".join(t[1] for t in taken)) == parts
        assert not any("</think>" in t[0] for t in taken)


def test_a_prompt_that_begins_the_thoughts():
    assert opens_thinking("assistant\n<think>\n")
    assert not opens_thinking("<think>\n\n</think>\n\n")


def test_what_json_cannot_say_is_a_large_negative_number(tiny: Running):
    texts = tiny.service.token_texts
    impossible = TokenLogprobs(-math.inf, ((3, 0.0), (4, -math.inf), (5, math.nan)))
    chat = chat_logprobs(texts, [4], [impossible], 3)["content"][0]
    assert chat["logprob"] == -9999
    assert [top["logprob"] for top in chat["top_logprobs"]] == [0.0, -9999, -9999]
    lists = CompletionLogprobs(texts, 3).of([4], [impossible])
    assert lists["token_logprobs"] == [-9999] and min(lists["top_logprobs"][0].values()) == -9999
    assert b"null" not in orjson.dumps([chat, lists])


def test_offsets_of_split_characters(writes: Running):
    texts = writes.service.token_texts
    ids = writes.engine.tokenizer.encode("é😁c")
    lists = CompletionLogprobs(texts, 0).of(ids, [TokenLogprobs(-1.0)] * len(ids))
    assert lists["text_offset"] == [0, 0, 1, 1, 1, 1, 2]
    assert lists["tokens"][0] == "bytes:\\xc3" and lists["tokens"][-1] == "c"
