"""Checkpoints that cannot be loaded: one line says what is wrong and what would be right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import Engine, EngineConfig, SteerError
from engine.config import TINY
from engine.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the small embedded checkpoint, to be damaged."""
    copy = tmp_path / "small"
    shutil.copytree(TINY / "small", copy)
    return copy


def load(folder: Path) -> Engine:
    return Engine("tiny", small=folder, large=TINY / "large")


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_missing_folder(tmp_path: Path):
    with pytest.raises(SteerError, match="no such folder"):
        load(tmp_path / "nothing")


def test_folder_without_config(folder: Path):
    (folder / "config.json").unlink()
    with pytest.raises(SteerError, match=r"config\.json is missing"):
        load(folder)


def test_config_that_is_not_json(folder: Path):
    (folder / "config.json").write_text("{")
    with pytest.raises(SteerError, match=r"config\.json: not valid JSON"):
        load(folder)


def test_config_without_a_size(folder: Path):
    raw = json.loads((folder / "config.json").read_text())
    del raw["hidden_size"]
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(SteerError, match="'hidden_size' is missing"):
        load(folder)


def test_unsupported_architecture(folder: Path):
    edit_json(folder / "config.json", architectures=["MambaForCausalLM"])
    with pytest.raises(SteerError, match="MambaForCausalLM is not supported; supported: Qwen2For"):
        load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"rope_type": "dynamic"}}, "rope type 'dynamic' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "'factor' is missing"),
        ({"rope_scaling": {"type": "yarn", "factor": -2}}, "factor must be a number above 0"),
        ({"rope_scaling": {"type": "yarn", "factor": 10**400}}, "factor must be a number above 0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor other than 1 is not supported"),
        (
            {
                "rope_scaling": {
                    "type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 4,
                    "high_freq_factor": 1,
                }
            },
            "low_freq_factor must be below high_freq_factor",
        ),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    ],
)
def test_unsupported_parts(folder: Path, changes: dict[str, object], message: str):
    raw = json.loads((folder / "config.json").read_text())
    raw.pop("rope_parameters")
    (folder / "config.json").write_text(json.dumps(raw | changes))
    with pytest.raises(SteerError, match=rf"config\.json: .*{message}"):
        load(folder)


def test_missing_weights(folder: Path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(SteerError, match=r"model\.safetensors is missing \(pickles are never"):
        load(folder)


def test_missing_tensor(folder: Path):
    edit_tensors(folder, lambda t: t.pop("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(SteerError, match=r"model\.layers\.0\.mlp\.up_proj\.weight is missing"):
        load(folder)


def test_extra_tensor(folder: Path):
    edit_tensors(folder, lambda t: t.update({"model.surprise": torch.zeros(1)}))
    with pytest.raises(SteerError, match=r"unexpected tensor model\.surprise"):
        load(folder)


def test_misshaped_tensor(folder: Path):
    edit_tensors(folder, lambda t: t.update({"model.norm.weight": torch.zeros(3)}))
    with pytest.raises(
        SteerError, match=r"model\.norm\.weight has shape \(3,\), config\.json asks"
    ):
        load(folder)


def test_integer_tensor(folder: Path):
    def to_integers(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int32)

    edit_tensors(folder, to_integers)
    with pytest.raises(
        SteerError, match=r"model\.norm\.weight is I32; expected F32 or BF16 or F16"
    ):
        load(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000])
def test_truncated_safetensors(folder: Path, keep: int):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SteerError, match=r"model\.safetensors: not a readable safetensors file"):
        load(folder)


def test_shard_that_leaves_the_folder(folder: Path):
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SteerError, match="is not a safetensors file of this folder"):
        load(folder)


def test_missing_shard(folder: Path):
    index = {"weight_map": {"model.norm.weight": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SteerError, match=r"shard model-1\.safetensors is missing"):
        load(folder)


def test_missing_tokenizer(folder: Path):
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SteerError, match=r"tokenizer\.json is missing"):
        load(folder)


def test_broken_tokenizer(folder: Path):
    (folder / "tokenizer.json").write_text("[]")
    with pytest.raises(SteerError, match="not a readable tokenizer"):
        load(folder)


def rename_token(path: Path, old: str, new: str) -> None:
    raw = json.loads(path.read_text())
    raw["model"]["vocab"] = {new if t == old else t: i for t, i in raw["model"]["vocab"].items()}
    path.write_text(json.dumps(raw))


def test_tokenizers_that_differ_in_a_token(folder: Path):
    rename_token(folder / "tokenizer.json", "9", "X")
    with pytest.raises(SteerError, match=r"differ: token 'X' is id \d+ in the small model, does"):
        load(folder)


def test_tokenizers_that_differ_in_how_they_split(folder: Path):
    edit_json(folder / "tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    with pytest.raises(SteerError, match="differ: their pre_tokenizer differs"):
        load(folder)


def test_tokenizer_with_one_token_less(folder: Path):
    raw = json.loads((folder / "tokenizer.json").read_text())
    last = max(raw["model"]["vocab"], key=raw["model"]["vocab"].get)
    del raw["model"]["vocab"][last]
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    other = Tokenizer(TINY / "large" / "tokenizer.json")
    found = Tokenizer(folder / "tokenizer.json").difference(other)
    assert found is not None and "does not exist in the small model" in found


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "48"),
        ("hidden_size", 48.0),
        ("num_attention_heads", 0),
        ("num_hidden_layers", None),
        ("max_position_embeddings", "256"),
        ("rms_norm_eps", "1e-6"),
        ("rms_norm_eps", -1.0),
        ("num_key_value_heads", True),
        ("rope_parameters", "x"),
        ("rope_theta", "ten"),
        ("tie_word_embeddings", "no"),
        ("architectures", 3),
        ("eos_token_id", -1),
    ],
)
def test_config_with_a_wrong_value(folder: Path, field: str, value: object):
    """The error names the file and the field."""
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", **{field: value})
    with pytest.raises(SteerError, match=r"config\.json: .*") as error:
        load(folder)
    assert field.rstrip("s") in str(error.value) or "architecture" in str(error.value)


@pytest.mark.parametrize("weight_map", [None, [], {}])
def test_an_index_without_a_map(folder: Path, weight_map: object):
    index = {"weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SteerError, match="expected a weight_map"):
        load(folder)


def test_other_weights_are_another_pair(engine: Engine, folder: Path):
    """A calibration must not survive a change of any tensor, or of the delimiters."""
    edit_tensors(folder, lambda t: t["model.layers.1.mlp.down_proj.weight"].mul_(0.5))
    assert load(folder).fingerprint != engine.fingerprint
    other = Engine("tiny", config=EngineConfig(delimiters=("\n",)))
    assert other.fingerprint != engine.fingerprint
    assert Engine("tiny", config=EngineConfig(block_tokens=4)).fingerprint == engine.fingerprint
