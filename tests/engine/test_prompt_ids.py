"""Prompts of token ids: read once, checked once, refused with the first wrong one."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from engine import AsyncEngine, Engine, Prompt, SamplingParams, SteerError
from engine.requests.prompt_ids import check_range, token_ids
from engine.text.tokenizer import Tokenizer

from .other_pieces import OtherPieces

TEXT = "12+34?\n\n"
IDS = [3, 4, 5, 6, 7, 8]
PARAMS = SamplingParams(max_tokens=2)


class Counted(Sequence[Any]):
    """Counts how often each of its ids is read."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids, self.reads = ids, [0] * len(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: Any) -> Any:
        for i in range(len(self.ids))[at] if isinstance(at, slice) else [at]:
            self.reads[i] += 1
        return self.ids[at]

    def __iter__(self) -> Iterator[int]:
        return (self[i] for i in range(len(self)))


@contextmanager
def counted_calls(*functions: Any) -> Iterator[list[int]]:
    """How often each function is called meanwhile, in this thread and those that begin."""
    codes = [function.__code__ for function in functions]
    counts = [0] * len(codes)

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in codes:
            counts[codes.index(frame.f_code)] += 1

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield counts
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


async def served(engine: Engine, prompt: Any) -> None:
    async with AsyncEngine(engine) as each:
        await each.generate(prompt, PARAMS, "small")
        async for _ in each.as_completed([prompt], PARAMS, "small"):
            pass


WAYS = {
    "generate": (1, lambda e, p: e.generate([p], PARAMS, "small")),
    "answers to wrong ones": (1, lambda e, p: e.generate([p], PARAMS, "small", errors="return")),
    "submit": (1, lambda e, p: e.abort(e.submit(p, PARAMS, "small"))),
    "samples": (
        1,
        lambda e, p: [
            e.abort(each) for each in e.submit_samples(p, SamplingParams(2, n=3), "small")
        ],
    ),
    "stream": (1, lambda e, p: list(e.stream(p, PARAMS, "small"))),
    "coroutines": (2, lambda e, p: asyncio.run(served(e, p))),  # two requests
}


@pytest.mark.parametrize("way", WAYS)
def test_each_id_is_read_and_checked_once(engine: Engine, way: str):
    requests, run = WAYS[way]
    prompt = Counted(IDS)
    run(engine, prompt)
    assert prompt.reads == [requests] * len(IDS)
    with counted_calls(token_ids, check_range, Tokenizer.encode) as calls:
        run(engine, IDS)
    assert calls == [requests, requests, 0]
    with counted_calls(token_ids, check_range, Tokenizer.encode) as calls:
        run(engine, TEXT)
    assert calls == [0, 0, requests]  # which gives no id beyond its own
    engine.step()  # drops what was aborted


def test_those_of_two_vocabularies_too(tmp_path: Path):
    engine = OtherPieces(tmp_path).engine()
    small, large = Counted(IDS), Counted(IDS[:4])
    engine.generate([Prompt(small, large)], PARAMS, "small")  # type: ignore[arg-type]
    assert small.reads == [1] * len(small) and large.reads == [1] * len(large)


@pytest.mark.parametrize("form", [list, tuple, np.array, torch.tensor, np.uint8, Counted, iter])
def test_forms_of_one_prompt(engine: Engine, form: Any):
    prompt = np.array(IDS, form) if form is np.uint8 else form(IDS)
    (answer,) = engine.generate([prompt], PARAMS, "small")
    assert answer.prompt_token_ids == tuple(IDS)
    assert {type(i) for i in answer.prompt_token_ids} == {int}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ([1, -1, 10**6], "-1"),
        ([1, 10**6, -1], "1000000"),
        ([1, 2**63], str(2**63)),
        ([-1, 2**63], "-1"),
        ([2**70, -1], str(2**70)),
        (np.array([1, 2**40]), str(2**40)),
        (np.array([1, -3], np.int8), "-3"),
    ],
)
def test_the_first_wrong_id_is_named(engine: Engine, wrong: Any, named: str):
    size = engine.tokenizer.size
    with pytest.raises(SteerError, match=rf"^token id {named} is not in 0\.\.{size - 1}$"):
        engine.submit(wrong, PARAMS)


@pytest.mark.parametrize(
    "wrong",
    [[1, True], [1.0], ["a"], [None], b"ab", {1: 2}, {1}, 7, np.array([True]), np.array([[1]])],
)
def test_what_is_no_prompt(engine: Engine, wrong: Any):
    with pytest.raises(SteerError, match=r"^a prompt must be text or token ids, got "):
        engine.submit(wrong, PARAMS)


@pytest.mark.parametrize("empty", [[], "", np.array([], int), iter([])])
def test_an_empty_prompt(engine: Engine, empty: Any):
    with pytest.raises(SteerError, match=r"^the prompt is empty$"):
        engine.submit(empty, PARAMS)
