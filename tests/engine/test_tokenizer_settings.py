"""What a tokenizer.json carries beside its tokens, and which of it may change a prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from engine import Engine, SamplingParams
from engine.config import TINY
from engine.text.tokenizer import Tokenizer

from .plain_bpe import write_plain_bpe

PROMPT = "47+36*37-15?\n\n"
TRAINING = {
    "truncation": {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 40},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    },
}


def changed(source: Path, target: Path, change) -> Path:
    """A copy of a folder whose tokenizer.json ``change`` has altered in place."""
    if source != target:
        shutil.copytree(source, target)
    raw = json.loads((source / "tokenizer.json").read_text())
    change(raw)
    (target / "tokenizer.json").write_text(json.dumps(raw))
    return target


@pytest.mark.parametrize("setting", TRAINING)
def test_truncation_and_padding_of_a_tokenizer_are_left_out(tmp_path: Path, setting: str):
    """They belong to batches of a training; two folders that differ in them are one pair."""
    small = changed(
        TINY / "small", tmp_path / "small", lambda raw: raw.update({setting: TRAINING[setting]})
    )
    plain = Tokenizer(TINY / "small")
    ours = Tokenizer(small)
    assert ours.encode(PROMPT, special=True) == plain.encode(PROMPT)
    assert ours.difference(plain) is None and ours.fingerprint == plain.fingerprint
    engine = Engine("custom", small=small, large=TINY / "large")
    params = SamplingParams(max_tokens=30)
    (answer,) = engine.generate([PROMPT], params, "large")
    (expected,) = Engine("tiny").generate([PROMPT], params, "large")
    assert answer.prompt_token_ids == tuple(plain.encode(PROMPT))
    assert (answer.text, engine.fingerprint[-12:]) == (
        expected.text,
        Engine("tiny").fingerprint[-12:],
    )


def test_merges_are_never_left_out_at_random(tmp_path: Path):
    """A model's dropout is for training too."""
    (tmp_path / "plain").mkdir()
    plain = write_plain_bpe(tmp_path / "plain", {})
    random = changed(plain, tmp_path / "random", lambda raw: raw["model"].update(dropout=0.5))
    text = "the quick brown fox jumps over the lazy dog " * 3
    ours, expected = Tokenizer(random), Tokenizer(plain).encode(text)
    assert all(ours.encode(text) == expected for _ in range(10))
    assert ours.difference(Tokenizer(plain)) is None


@pytest.mark.parametrize("flag", ["special", "lstrip", "rstrip", "single_word", "normalized"])
def test_flags_of_an_added_token_are_those_of_the_config(tmp_path: Path, flag: str):
    """tokenizer_config.json and tokenizer.json may disagree: the former counts."""
    (tmp_path / "plain").mkdir()
    plain = write_plain_bpe(tmp_path / "plain", {"<think>": False})
    changed(plain, plain, lambda raw: raw.update(normalizer={"type": "Lowercase"}))
    listed = json.loads((plain / "tokenizer.json").read_text())["added_tokens"]
    (think,) = (token for token in listed if token["content"] == "<think>")
    index = str(think.pop("id"))
    config = {"added_tokens_decoder": {index: think | {flag: not think[flag]}}}
    (plain / "tokenizer_config.json").write_text(
        json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    ours, theirs = Tokenizer(plain), PreTrainedTokenizerFast.from_pretrained(plain)
    for text in ("a <think> b", "the<think>dog", "<think> fox", "A <THINK> b"):
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_added_tokens_json_leaves_the_flags_of_tokenizer_json(tmp_path: Path):
    """An older list of tokens has no flags of its own."""
    plain = write_plain_bpe(tmp_path, {"<end>": True, "<think>": False})
    tokens = {"<end>": 258, "<think>": 259}
    (plain / "added_tokens.json").write_text(json.dumps(tokens))
    ours, theirs = Tokenizer(plain), PreTrainedTokenizerFast.from_pretrained(plain)
    ids = theirs.encode("the<think>fox<end>")
    assert ours.encode("the<think>fox<end>") == ids
    assert ours.text_of(ids) == theirs.decode(ids, skip_special_tokens=True) == "the<think>fox"
