"""Text that a tokenizer does not know is refused, wherever it stands; its own marks are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken, models, processors
from tokenizers import Tokenizer as FastTokenizer
from transformers import PreTrainedTokenizerFast

from engine import Engine, SamplingParams, SteerError
from engine.config import TINY
from engine.text.tokenizer import Tokenizer

from .scripted import word_tokenizer


def saved(tokenizer: FastTokenizer, folder: Path) -> Tokenizer:
    tokenizer.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


@pytest.fixture
def words(tmp_path: Path) -> FastTokenizer:
    """Its unknown token is the piece "?", which is also a word."""
    return word_tokenizer(["?", *"abc"], ["<end>"])


def unknown_is_first(folder: Path) -> Path:
    """The embedded pair with GPT-2's way: one token begins a text and stands for the unknown."""
    shutil.copytree(TINY, folder, dirs_exist_ok=True)
    for role in ("small", "large"):
        path = folder / role / "tokenizer.json"
        raw = json.loads(path.read_text())
        raw["model"]["unk_token"] = "<eos>"
        path.write_text(json.dumps(raw))
        tokenizer = FastTokenizer.from_file(str(path))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<eos> $A", special_tokens=[("<eos>", tokenizer.token_to_id("<eos>"))]
        )
        tokenizer.save(str(path))
    return folder


def test_an_unknown_token_may_also_begin_a_text(tmp_path: Path):
    folder = unknown_is_first(tmp_path)
    text = "47+36?\n\n"
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "small" / "tokenizer.json"))
    engine = Engine("custom", small=folder / "small", large=folder / "large")
    (answer,) = engine.generate([text], SamplingParams(max_tokens=4), "small")
    assert list(answer.prompt_token_ids) == theirs(text)["input_ids"]
    assert engine.tokenizer.encode("<eos>4") == theirs("<eos>4", add_special_tokens=False).input_ids
    for wrong in ("4日", "<eos>4日", "4<eos><eos>日", "日<eos>"):
        for special in (False, True):
            with pytest.raises(SteerError, match="the tokenizer does not know '日'"):
                engine.tokenizer.encode(wrong, special)


@pytest.mark.parametrize("text", ["x", "?x", "a?b?x", "x?", "??ax"])
def test_unknown_text_after_a_written_unknown_token(words, tmp_path: Path, text: str):
    tokenizer = saved(words, tmp_path)
    assert tokenizer.encode("?a?") == [0, 1, 0]
    with pytest.raises(SteerError, match="the tokenizer does not know 'x'"):
        tokenizer.encode(text)


def test_an_unknown_token_that_takes_the_spaces_beside_it(words, tmp_path: Path):
    """They are part of what it stands for, and no unknown text."""
    words.add_tokens([AddedToken("?", lstrip=True, rstrip=True)])
    tokenizer = saved(words, tmp_path)
    assert tokenizer.encode("a ? b") == [1, 0, 2]
    with pytest.raises(SteerError, match="the tokenizer does not know 'x'"):
        tokenizer.encode("a ? x")


def test_a_unigram_names_its_unknown_token_by_id(tmp_path: Path):
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -1.5)]
    tokenizer = saved(FastTokenizer(models.Unigram(pieces, 0, False)), tmp_path)
    assert tokenizer.encode("abba") == [1, 2, 2, 1]
    with pytest.raises(SteerError, match="the tokenizer does not know 'x'"):
        tokenizer.encode("abx")


def test_an_unknown_token_that_does_not_exist(tmp_path: Path):
    model = models.WordLevel({"a": 0, "b": 1}, unk_token="<unk>")
    tokenizer = saved(FastTokenizer(model), tmp_path)
    assert tokenizer.encode("a") == [0]
    with pytest.raises(SteerError, match=r"cannot encode this text: .*Missing \[UNK\] token"):
        tokenizer.encode("x")
    assert tokenizer.write(b"x") is None and tokenizer.write(b"ab") == [0, 1]
