"""The thinking part ends where its text does: however it is split, and in the prompt too."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import AfterThinking, Completion, Engine, EngineConfig, SamplingParams
from tests.engine.scripted import scripted_checkpoint

LETTERS = [*"?abcdefguvw"]  # none of the marker's


def answer(folder: Path, prompt: str, policy: str = "large", **params: object) -> Completion:
    """By ``policy`` while it thinks, and by the small model afterwards."""
    engine = Engine("custom", small=folder, large=folder, config=EngineConfig(check_every=1))
    both = AfterThinking(engine.policy(policy), engine.policy("small"))
    (done,) = engine.generate([prompt], SamplingParams(max_tokens=16, **params), both)
    return done


def authors(done: Completion) -> list[tuple[str, str]]:
    return [(step.model, step.text) for step in done.steps]


@pytest.mark.parametrize(
    "close",
    [
        ["</think>"],
        ["</", "think", ">"],
        ["</", "think", ">\n\n"],
        ["a</", "think", ">"],
        [*"</think>"],
        ["b</think>\n"],
    ],
)
def test_however_the_marker_is_split(tmp_path: Path, close: list[str]):
    pieces = list(dict.fromkeys([*LETTERS, *close, "</think>"]))
    script = ["c", *close, *"defguvw", "<eos>"]
    folder = scripted_checkpoint(tmp_path, pieces, script, ["<eos>"], {"eos_token_id": len(pieces)})
    done = answer(folder, "c", max_think_tokens=14)
    assert done.text == "".join([*close, *"defguvw"])
    assert authors(done) == [("large", "".join(close)), ("small", "defguvw")]


@pytest.mark.parametrize("window", ["probe:2", "probe:5:least", "step"])
def test_the_marker_ends_within_a_trial(tmp_path: Path, window: str):
    """The large model never writes: what stands on trial holds the marker and what follows it."""
    pieces = [*LETTERS, "</", "think", ">", ">\n"]
    script = ["c", "</", "think", ">\n", *"defguvw", "<eos>"]
    folder = scripted_checkpoint(tmp_path, pieces, script, ["<eos>"], {"eos_token_id": len(pieces)})
    done = answer(folder, "c", f"threshold:max_prob:1e-9@{window}", max_think_tokens=9)
    assert done.text == "</think>\ndefguvw"
    assert [step.text for step in done.steps] == ["</think>\n", "defguvw"]


def test_a_marker_that_is_a_special_token(tmp_path: Path):
    """It has no text, so it is found by its id."""
    special = ["</think>", "<eos>"]
    folder = scripted_checkpoint(
        tmp_path,
        LETTERS,
        ["a", "b", "</think>", *"cdef", "<eos>"],
        special,
        {"eos_token_id": len(LETTERS) + 1},
    )
    done = answer(folder, "a", max_think_tokens=9)
    assert authors(done) == [("large", "b"), ("small", "cdef")]


CHAT = [*LETTERS, "\n\n", "<think>", "</think>"]


@pytest.mark.parametrize(
    ("prompt", "thinks"),
    [
        ("a", True),
        ("<think>a", True),
        ("<think>\n\n</think>\n\na", False),
        ("</think>a", False),
        ("<think>\n\n</think>\n\n<think>a", True),  # opened again
        ("<think>\n\n</think>b<turn>a", True),  # an earlier turn's
        ("<turn><think></think>a", False),
    ],
)
def test_what_the_prompt_has_closed_is_closed(tmp_path: Path, prompt: str, thinks: bool):
    """Then no marker is forced, and the answer's policy writes from the start."""
    folder = scripted_checkpoint(
        tmp_path,
        CHAT,
        [*"abcdefguvw", "<eos>"],
        ["<turn>", "<eos>"],
        {"eos_token_id": len(CHAT) + 1},
    )
    done = answer(folder, prompt, max_think_tokens=4)
    assert done.text.startswith("bcde</think>" if thinks else "bcdefguvw")
    assert [step.model for step in done.steps] == (["large", "small"] if thinks else ["small"])
    assert ("</think>" in done.text) == thinks


def test_boundaries_say_so(tmp_path: Path):
    folder = scripted_checkpoint(tmp_path, CHAT, ["a", "b", "\n\n", "c", "\n\n"], ["<eos>"])
    engine = Engine("custom", small=folder, large=folder)
    seen = []

    def look(boundary):
        seen.append(boundary.thinking)
        return "small"

    params = SamplingParams(max_tokens=4, think_end="</think>")
    engine.generate(["<think>a", "<think></think>a"], params, look)
    assert set(seen) == {True, False}


# The pieces of a model, and what it writes. After a marker that the other model wrote it goes on.
SPLIT = (
    [*LETTERS, "</", "think", ">", ">\n\n", "\n\n"],
    ["a", "b", "</", "think", ">\n\n", *"cdefg", "<eos>", ">", "\n\n", "c"],
)
WHOLE = [*LETTERS, "</think>", "\n\n"], ["a", "b", "</think>", "\n\n", *"cdefg", "<eos>"]


@pytest.mark.parametrize(("small", "large"), [(SPLIT, WHOLE), (WHOLE, SPLIT)])
@pytest.mark.parametrize("policy", ["small", "large"])
def test_models_that_split_it_differently(tmp_path: Path, small, large, policy: str):
    folders = [
        scripted_checkpoint(
            tmp_path / name, pieces, script, ["<eos>"], {"eos_token_id": len(pieces)}
        )
        for name, (pieces, script) in (("small", small), ("large", large))
    ]
    engine = Engine(
        "custom",
        small=folders[0],
        large=folders[1],
        config=EngineConfig(check_every=1, retokenize=True),
    )
    other = {"small": "large", "large": "small"}[policy]
    both = AfterThinking(engine.policy(policy), engine.policy(other))
    params = SamplingParams(max_tokens=16, max_think_tokens=9)
    done, closed = engine.generate(["a", "</think>b"], params, both)
    assert done.text == "b</think>\n\ncdefg"
    first = "b</think>\n\n" if (small if policy == "small" else large) is SPLIT else "b</think>"
    assert authors(done) == [(policy, first), (other, done.text.removeprefix(first))]
    assert closed.steps[0].model == other
