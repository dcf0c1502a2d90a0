"""Two tokenizers with the same ids may still differ: the first difference is named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from engine import Engine, SteerError
from engine.config import TINY
from engine.text.tokenizer import Tokenizer

from .plain_bpe import write_plain_bpe


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    (tmp_path / "plain").mkdir()
    return write_plain_bpe(tmp_path / "plain", {"<end>": True, "<think>": False})


def altered(folder: Path, target: Path, **changes) -> Tokenizer:
    """The tokenizer of ``folder`` with other parts in its tokenizer.json."""
    raw = json.loads((folder / "tokenizer.json").read_text())
    target.write_text(json.dumps(raw | {k: change(raw[k]) for k, change in changes.items()}))
    return Tokenizer(target)


def flagged(flag: str, value: bool):
    return lambda added: [t | {flag: value} if t["content"] == "<think>" else t for t in added]


_TEXT = {"Sequence": {"id": "A", "type_id": 0}}
MARKED = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<end>", "type_id": 0}}, _TEXT],
    "pair": [_TEXT, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<end>": {"id": "<end>", "ids": [258], "tokens": ["<end>"]}},
}


def swapped_merges(model: dict) -> dict:
    first, second, *rest = model["merges"]
    return model | {"merges": [second, first, *rest]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"added_tokens": flagged("special", True)},
            r"token '<think>' \(id \d+\): special is False in the small model, True in the large",
        ),
        ({"added_tokens": flagged("lstrip", True)}, r"'<think>' \(id \d+\): lstrip is False in"),
        ({"added_tokens": flagged("single_word", True)}, r"single_word is False in the small"),
        (
            {"post_processor": lambda _: MARKED},
            r"their post_processor differs: it is None in the small model, \{'type': 'Template",
        ),
        (
            {"model": swapped_merges},
            r"their model differs: merges\[0\] is \['h', 'e'\] in the small .*\['t', 'he'\]",
        ),
        (
            {"model": lambda m: m | {"merges": m["merges"][:-1]}},
            r"their model differs: merges\[\d+\] is \[.*\] in the small model, missing in",
        ),
        (
            {"model": lambda m: m | {"ignore_merges": True}},
            "their model differs: ignore_merges is False in the small model, True in the large",
        ),
        (
            {"pre_tokenizer": lambda p: p | {"add_prefix_space": True}},
            "their pre_tokenizer differs: add_prefix_space is False in the small model, True",
        ),
    ],
)
def test_the_first_difference_is_named(plain: Path, tmp_path: Path, changes, message):
    """Also where every token has the same id on both sides."""
    same = altered(plain, tmp_path / "same.json")
    other = altered(plain, tmp_path / "other.json", **changes)
    assert same.difference(altered(plain, tmp_path / "again.json")) is None
    assert re.match(f".*{message}", str(same.difference(other))), same.difference(other)
    assert other.difference(same) is not None


def test_a_token_that_is_added_on_one_side_only(plain: Path, tmp_path: Path):
    """It has the same id on both, but only one side finds it in a text."""
    raw = json.loads((plain / "tokenizer.json").read_text())
    (think,) = (t for t in raw["added_tokens"] if t["content"] == "<think>")
    vocabulary = {t["content"]: t["id"] for t in raw["added_tokens"]}
    model = raw["model"] | {"vocab": raw["model"]["vocab"] | vocabulary}
    mine = altered(plain, tmp_path / "mine.json", model=lambda _: model)
    theirs = altered(
        plain,
        tmp_path / "theirs.json",
        model=lambda _: model,
        added_tokens=lambda added: [t for t in added if t["content"] != "<think>"],
    )
    assert mine.encode("<think>") == [think["id"]] != theirs.encode("<think>")
    found = (
        f"token '<think>' (id {think['id']}) is added in the small model, not added in the large"
    )
    assert mine.difference(theirs) == found


def test_a_pair_whose_special_tokens_differ_is_refused(tmp_path: Path):
    """Their bytes would differ: none on one side, its text on the other."""
    think = {
        "id": 0,
        "content": "",
        "special": True,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
    }
    for role in ("small", "large"):
        shutil.copytree(TINY / role, tmp_path / role)
        raw = json.loads((tmp_path / role / "tokenizer.json").read_text())
        last = max(raw["model"]["vocab"], key=raw["model"]["vocab"].get)
        token = think | {"id": raw["model"]["vocab"][last], "content": last}
        raw["added_tokens"] = [*raw["added_tokens"], token | {"special": role == "small"}]
        (tmp_path / role / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(SteerError, match=r"differ: token .* special is True in the small model"):
        Engine("tiny", small=tmp_path / "small", large=tmp_path / "large")
