"""Special tokens that special_tokens_map.json or the config names, as transformers reads them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import sentencepiece
from transformers import PreTrainedTokenizerFast

from engine import SteerError
from engine.text.tokenizer import Tokenizer

from .plain_bpe import write_plain_bpe
from .scripted import word_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    "{{ unk_token }}{{ pad_token }}"
)
TALK = [{"role": "user", "content": "the he"}]
END = {"content": "<end>", "lstrip": False, "rstrip": False, "normalized": False}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({}, {"eos_token": "<end>"}),
        ({}, {"eos_token": END, "bos_token": "<think>", "pad_token": None}),
        ({"eos_token": "<think>"}, {"eos_token": "<end>"}),  # the map counts
        ({"eos_token": "<end>", "pad_token": "<end>"}, {"bos_token": "<think>", "pad_token": None}),
        # The config lists its added tokens itself: the map does not count.
        ({"added_tokens_decoder": {}}, {"eos_token": "<end>"}),
        (
            {"added_tokens_decoder": {"258": END | {"special": True}}, "bos_token": "<end>"},
            {"eos_token": "<end>", "bos_token": "<think>"},
        ),
    ],
)
def test_a_template_writes_the_tokens_of_the_map(tmp_path: Path, config, named):
    folder = write_plain_bpe(tmp_path, {"<end>": True, "<think>": False}, **config)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    ours, theirs = Tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    expected = theirs.apply_chat_template(TALK, tokenize=False)
    assert ours.chat_template is not None and ours.chat_template.render(TALK) == expected
    assert ours.chat(TALK) == theirs(expected, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("file", ["special_tokens_map", "tokenizer_config"])
@pytest.mark.parametrize(
    "named",
    [
        {"eos_token": "<end>"},
        {"eos_token": "he", "bos_token": "a"},
        {"additional_special_tokens": ["<end>", "he"]},
        {"extra_special_tokens": ["<end>"]},
        {"pad_token": {"content": "<end>", "lstrip": True, "__type": "AddedToken"}},
        {"mask_token": {"content": "he", "single_word": True, "__type": "AddedToken"}},
    ],
)
def test_words_that_are_called_special(tmp_path: Path, file: str, named):
    """They are words of the vocabulary, with no mark in tokenizer.json."""
    named = copy.deepcopy(named)
    word_tokenizer(["?", " ", "he", *"abc", "<end>"]).save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if file == "special_tokens_map":  # there a token is an object without a type
        for token in named.values():
            if isinstance(token, dict):
                token.pop("__type", None)
    (tmp_path / f"{file}.json").write_text(json.dumps(config | named))
    ours, theirs = Tokenizer(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in ("ab<end>c", "ahe he b", "a <end>  he", "abc"):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.text_of(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_added_tokens_json_and_the_map(tmp_path: Path):
    """The older pair of files: one has the ids, the other says which are special."""
    folder = write_plain_bpe(tmp_path, {})
    (folder / "added_tokens.json").write_text(json.dumps({"<end>": 258, "<think>": 259}))
    names = {"eos_token": "<end>", "additional_special_tokens": []}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    ours, theirs = Tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    ids = theirs("the<think>he<end>", add_special_tokens=False)["input_ids"]
    assert ours.encode("the<think>he<end>") == ids
    assert ours.text_of(ids) == theirs.decode(ids, skip_special_tokens=True) == "the<think>he"


def test_ends_of_a_sentencepiece_text(tmp_path: Path):
    """Those of the map, and of tokens that the folder adds."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 9),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    size = Tokenizer(tmp_path).size
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_eos_token": True}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<stop>": size}))
    names = {"eos_token": "<stop>", "bos_token": {"content": "</s>"}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    ours = Tokenizer(tmp_path)
    assert ours.encode("fox", special=True) == [2, *ours.encode("fox"), size]
    assert ours.text_of([size]) == ""
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": None}))
    ours = Tokenizer(tmp_path)
    assert ours.encode("fox", special=True) == [*ours.encode("fox"), 2]


@pytest.mark.parametrize("name", ["additional_special_tokens", "extra_special_tokens"])
def test_special_tokens_that_are_no_list(tmp_path: Path, name: str):
    folder = write_plain_bpe(tmp_path, {})
    (folder / "special_tokens_map.json").write_text(json.dumps({name: "<end>"}))
    with pytest.raises(SteerError, match=f"{name} must be a list of tokens, got '<end>'"):
        Tokenizer(folder)
