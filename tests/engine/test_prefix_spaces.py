"""The spaces that tokenizer.model folders add to a text, as their tokenizer_config.json says."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import AddedToken
from transformers import LlamaTokenizer

from engine import SteerError
from engine.text.tokenizer import Tokenizer

from .hard_text import HARD

LINES = ["the quick brown fox jumps over the lazy dog", "USER: hello there ASSISTANT: hi"] * 30
TALKS = (
    "the fox",
    "USER: hi</s>USER: hello",
    "<s>the</s> fox</s><s> dog  </s>\nhi",
    "[INST] hi [/INST]the[INST]the",
    "</s>",
    "</s> </s>the",
)
SETTINGS = list(itertools.product((True, False), (True, False)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pieces")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return folder


def configured(folder: Path, target: Path, **settings) -> Path:
    """A copy of the folder with these settings, and a token that the config adds."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    added = {"330": {"content": "[INST]", "special": False, "normalized": False}}
    config = {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": added}
    (target / "tokenizer_config.json").write_text(json.dumps(config | settings))
    return target


def oracle(folder: Path, **settings) -> LlamaTokenizer:
    """Built from the pieces: to read the file itself transformers needs protobuf."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ids = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    words = [piece for piece, i in ids.items() if not model.is_byte(i) and not model.is_control(i)]
    cuts = [(word[:i], word[i:]) for word in words for i in range(1, len(word))]
    merges = [(left, right) for left, right in cuts if left in ids and right in ids]
    tokenizer = LlamaTokenizer(vocab=ids, merges=merges, **settings)
    tokenizer.add_tokens([AddedToken("[INST]", normalized=False)])
    return tokenizer


@pytest.mark.parametrize(("legacy", "space"), SETTINGS)
def test_ids_equal_transformers(folder: Path, tmp_path: Path, legacy: bool, space: bool):
    settings = {"legacy": legacy, "add_prefix_space": space}
    ours, theirs = Tokenizer(configured(folder, tmp_path, **settings)), oracle(folder, **settings)
    for text in (*TALKS, *HARD):
        if legacy and space and re.search(r"(^|>|\])[ ▁]", text):
            continue  # sentencepiece itself adds a space before a space, LlamaTokenizer does not
        ids = ours.encode(text)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
        assert ours.bytes_of(ids).decode().removeprefix(" " * space) == ours.decode(ids)


@pytest.mark.parametrize("settings", [{}, {"legacy": None}, {"add_prefix_space": None}])
def test_without_settings_the_model_file_decides(folder: Path, tmp_path: Path, settings):
    ours = Tokenizer(configured(folder, tmp_path, **settings))
    assert ours.bytes_of(ours.encode("USER: hi</s>USER: hello")) == b" USER: hi USER: hello"


@pytest.mark.parametrize("name", ["legacy", "add_prefix_space"])
def test_settings_that_are_no_truth_values(folder: Path, tmp_path: Path, name: str):
    with pytest.raises(SteerError, match=rf"{name} must be true, false or null, got 'no'"):
        Tokenizer(configured(folder, tmp_path, **{name: "no"}))
