"""What a config.json says in several places, and sizes that no model has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from engine import Engine, SteerError
from engine.config import TINY
from engine.models.checkpoint import load_config

LINEAR = {"type": "linear", "factor": 2.0}
ROPES: dict[str, dict[str, Any]] = {
    "none": {},
    "top": {"rope_theta": 2e4},
    "parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "parameters without a base": {"rope_theta": 2e4, "rope_parameters": {"rope_type": "default"}},
    "parameters and top": {
        "rope_theta": 2e4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    },
    "scaling and top": {"rope_theta": 2e4, "rope_scaling": LINEAR | {"rope_theta": 5e5}},
    "scaling and parameters": {
        "rope_theta": 2e4,
        "rope_scaling": LINEAR,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    },
    "empty scaling": {
        "rope_theta": 2e4,
        "rope_scaling": {},
        "rope_parameters": LINEAR | {"rope_theta": 5e5},
    },
    "no scaling": {"rope_theta": 2e4, "rope_scaling": None, "rope_parameters": None},
    "partial outside": {
        "partial_rotary_factor": 0.5,
        "rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 1.0},
    },
}


def folder_with(folder: Path, **changes: Any) -> Path:
    """A folder with the small embedded model's config.json, changed; no weights."""
    raw = json.loads((TINY / "small" / "config.json").read_text())
    raw.pop("rope_parameters")
    (folder / "config.json").write_text(json.dumps(raw | changes))
    return folder


@pytest.mark.parametrize("case", ROPES)
def test_the_rotary_base_is_that_of_transformers(case: str, tmp_path: Path):
    folder = folder_with(tmp_path, **ROPES[case])
    theirs = AutoConfig.from_pretrained(folder).rope_parameters
    mine = load_config(folder)
    assert mine.rope_theta == theirs["rope_theta"]
    assert mine.rope.kind == theirs["rope_type"]
    assert mine.rope.factor == theirs.get("factor", 1.0)


COUNTS = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)


@pytest.mark.parametrize("value", [2**31 - 1, 2**31, 10**30])
@pytest.mark.parametrize("field", COUNTS)
def test_an_absurd_size_is_refused_at_once(field: str, value: int, tmp_path: Path):
    """One line that names the file, the field and what is found; nothing is built or allocated."""
    folder = folder_with(tmp_path, **{field: value})
    line = rf"config\.json: {field} must be a whole number from 1 to \d+, found {value}"
    with pytest.raises(SteerError, match=line):
        Engine("custom", small=folder, large=TINY / "large")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}},
            r"rope parameters by layer \(full_attention\) are not supported",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 1e300}},
            r"yarn stretches the context to 2\.56e\+302 tokens, more than 16777216",
        ),
    ],
)
def test_rotary_parameters_that_are_refused(changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(SteerError, match=rf"config\.json: {message}"):
        load_config(folder_with(tmp_path, **changes))
