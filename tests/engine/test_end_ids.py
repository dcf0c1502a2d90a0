"""Tokens that end a text, from every file of a folder that can name one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from engine import Engine, SamplingParams

from .scripted import scripted_checkpoint

LETTERS = [*"?abcdefghij"]
SPECIAL = ["<end>", "<turn>", "<other>"]
END, TURN, OTHER = range(len(LETTERS), len(LETTERS) + len(SPECIAL))
LETTER_C = LETTERS.index("c")


def folder_with(folder: Path, config: dict[str, Any] | None = None, **files: Any) -> Path:
    """A model that writes ``bc<turn>defg<end>`` after ``a``."""
    script = [*"abc", "<turn>", *"defg", "<end>"]
    return scripted_checkpoint(folder, LETTERS, script, SPECIAL, config or {}, **files)


def ended_by(folder: Path) -> tuple[str, int]:
    """The text that follows ``a``, and its last id."""
    engine = Engine("custom", small=folder, large=folder)
    (answer,) = engine.generate(["a"], SamplingParams(20), "small")
    assert answer.finish_reason == "stop"
    return answer.text, answer.token_ids[-1]


TURN_OBJECT = {"content": "<turn>", "lstrip": False, "normalized": False, "rstrip": False}
DECLARED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "config.json": ({"eos_token_id": [END, TURN]}, {}),
    "config.json beside another": (
        {"eos_token_id": TURN},
        {"generation_config": {"eos_token_id": END}},
    ),
    "generation_config.json": (
        {"eos_token_id": END},
        {"generation_config": {"eos_token_id": [TURN]}},
    ),
    "tokenizer_config.json": ({"eos_token_id": END}, {"tokenizer_config": {"eos_token": "<turn>"}}),
    "tokenizer_config.json, an object": (
        {"eos_token_id": END},
        {
            "generation_config": {"eos_token_id": [END, OTHER]},
            "tokenizer_config": {"eos_token": TURN_OBJECT},
        },
    ),
    "special_tokens_map.json": (
        {"eos_token_id": END},
        {"special_tokens_map": {"eos_token": TURN_OBJECT}},
    ),
    "nothing else": ({}, {"tokenizer_config": {"eos_token": "<turn>"}}),
}


@pytest.mark.parametrize("case", DECLARED)
def test_each_file_can_end_a_text(case: str, tmp_path: Path):
    config, files = DECLARED[case]
    assert ended_by(folder_with(tmp_path, config, **files)) == ("bc", TURN)


def test_the_end_is_that_of_the_tokenizer_in_transformers(tmp_path: Path):
    folder = folder_with(
        tmp_path,
        {"eos_token_id": END},
        tokenizer_config={"eos_token": "<turn>", "tokenizer_class": "PreTrainedTokenizerFast"},
    )
    assert ended_by(folder)[1] == AutoTokenizer.from_pretrained(folder).eos_token_id == TURN


@pytest.mark.parametrize("named", [None, "<nothing>", 5, {"content": None}])
def test_a_name_without_a_token_ends_nothing(named: Any, tmp_path: Path):
    folder = folder_with(
        tmp_path, {"eos_token_id": END}, tokenizer_config={"eos_token": named, "add_eos_token": 1}
    )
    assert ended_by(folder) == ("bcdefg", END)


@pytest.mark.parametrize("stale", [LETTER_C, -1, "x", 10**6])
def test_a_stale_id_of_config_json_ends_nothing(stale: Any, tmp_path: Path):
    """As LlamaConfig's default, 2, in a folder whose generation_config.json knows better."""
    folder = folder_with(
        tmp_path, {"eos_token_id": stale}, generation_config={"eos_token_id": TURN}
    )
    assert ended_by(folder) == ("bc", TURN)


def said(folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level(logging.INFO, logger="engine"):
        Engine("custom", small=folder, large=folder)
    return [r.getMessage() for r in caplog.records if r.name.endswith("end_ids")]


def test_files_that_differ_are_named_once(tmp_path: Path, caplog):
    folder = folder_with(
        tmp_path,
        {"eos_token_id": LETTER_C},
        generation_config={"eos_token_id": [END, OTHER]},
        tokenizer_config={"eos_token": "<turn>"},
    )
    assert said(folder, caplog) == [
        f"{folder}: a text ends at any of the ids {END}, {OTHER}, {TURN} "
        f"(generation_config.json: {END}, {OTHER}; tokenizer_config.json: {TURN})"
    ]


def test_files_that_agree_are_not_worth_a_line(tmp_path: Path, caplog):
    folder = folder_with(
        tmp_path,
        {"eos_token_id": TURN},
        generation_config={"eos_token_id": [TURN]},
        tokenizer_config={"eos_token": "<turn>"},
    )
    assert said(folder, caplog) == []


def test_each_model_has_the_ends_of_its_own_files(tmp_path: Path):
    """Where tokens agree either model's ends end the text."""
    small = folder_with(tmp_path / "small", {"eos_token_id": END})
    large = folder_with(
        tmp_path / "large", {"eos_token_id": END}, tokenizer_config={"eos_token": "<turn>"}
    )
    engine = Engine("custom", small=small, large=large)
    assert [shape.eos_ids for shape in engine.shapes] == [(END,), (END, TURN)]
    assert engine.generate(["a"], SamplingParams(20), "small")[0].text == "bc"
