"""Bad input gets one line that names what is wrong and what would be right; nothing is lost."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import Engine, EngineConfig, Random, SamplingParams, SteerError, Threshold
from engine.config import TINY
from engine.config.pairs import Pair
from engine.text.tokenizer import Tokenizer

PROMPT = "47+36*7-15?\n\n"


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


def test_unknown_pair():
    with pytest.raises(SteerError, match=r"unknown pair 'qwen-9b/qwen-1b'; known: tiny, "):
        Engine("qwen-9b/qwen-1b")


def test_pair_without_weights():
    with pytest.raises(SteerError, match="no weights; pass small=FOLDER and large=FOLDER"):
        Engine("qwen-1.5b/qwen-32b")


def test_pair_with_one_folder_only():
    with pytest.raises(
        SteerError, match="the large model is missing: pass its folder or GGUF file"
    ):
        Pair.named("qwen-1.5b/qwen-32b", small="somewhere")


@pytest.mark.parametrize("policy", ["stear", "small:0.5", ""])
def test_unknown_policy(engine: Engine, policy: str):
    with pytest.raises(SteerError, match=r"unknown policy .*; known: small, large, random"):
        engine.generate([PROMPT], policy=policy)


@pytest.mark.parametrize("policy", ["threshold:max_prob", "threshold:max_prob:much"])
def test_malformed_threshold(engine: Engine, policy: str):
    with pytest.raises(SteerError, match="expected threshold:SIGNAL:VALUE"):
        engine.generate([PROMPT], policy=policy)


def test_unknown_signal():
    with pytest.raises(SteerError, match="unknown signal 'mood'; known: max_prob, entropy"):
        Threshold("mood", 1.0)


def test_share_out_of_range():
    with pytest.raises(SteerError, match=r"share must be in \[0, 1\], got 1.5"):
        Random(1.5)


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
            {"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 4,
                              "high_freq_factor": 1}},
            "low_freq_factor must be below high_freq_factor",
        ),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
    ],
)  # fmt: skip
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


def test_empty_prompt(engine: Engine):
    with pytest.raises(SteerError, match="the prompt is empty"):
        engine.generate([""])


def test_prompt_with_a_foreign_id(engine: Engine):
    with pytest.raises(
        SteerError, match=rf"token id 99 is not in 0\.\.{engine.tokenizer.size - 1}\b"
    ):
        engine.generate([[3, 99]])


def test_prompt_longer_than_the_context(engine: Engine):
    with pytest.raises(SteerError, match="exceed the context of 256 tokens"):
        engine.generate(["1" * 300], SamplingParams(max_tokens=1))


def test_prompt_longer_than_the_arena():
    engine = Engine("tiny", config=EngineConfig(arena_tokens=64))
    with pytest.raises(SteerError, match="need KV for 110 tokens, the arena holds 64"):
        engine.generate(["1" * 100], SamplingParams(max_tokens=10))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_tokens", 0, "max_tokens must be at least 1, got 0"),
        ("max_tokens", -3, "max_tokens must be at least 1, got -3"),
        ("temperature", -0.1, "temperature must be 0 or more, got -0.1"),
        ("temperature", float("nan"), "temperature must be 0 or more, got nan"),
        ("temperature", float("inf"), "temperature must be 0 or more, got inf"),
        ("top_p", 0.0, r"top_p must be in \(0, 1\]"),
        ("top_p", 1.5, r"top_p must be in \(0, 1\]"),
        ("top_k", -1, r"top_k must be 0 \(off\) or more"),
        ("min_p", 2.0, r"min_p must be in \[0, 1\]"),
        ("seed", -1, "seed must be in"),
        ("repetition_penalty", 0, "repetition_penalty must be above 0 and finite, got 0"),
        ("repetition_penalty", -1.5, "repetition_penalty must be above 0 and finite, got -1.5"),
        ("repetition_penalty", float("nan"), "repetition_penalty must be above 0 and finite"),
        ("repetition_penalty", float("inf"), "repetition_penalty must be above 0 and finite"),
        ("repetition_penalty", 10**400, "repetition_penalty must be above 0 and finite"),
        ("presence_penalty", 2.1, r"presence_penalty must be in \[-2, 2\], got 2.1"),
        ("presence_penalty", float("nan"), r"presence_penalty must be in \[-2, 2\], got nan"),
        ("frequency_penalty", -2.1, r"frequency_penalty must be in \[-2, 2\], got -2.1"),
        ("frequency_penalty", float("nan"), r"frequency_penalty must be in \[-2, 2\], got nan"),
        ("logprobs", -1, r"logprobs must be None or in 0\.\.20, got -1"),
        ("logprobs", 21, r"logprobs must be None or in 0\.\.20, got 21"),
    ],
)
def test_sampling_params(field: str, value: float, message: str):
    with pytest.raises(SteerError, match=message):
        SamplingParams(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("block_tokens", 0), ("arena_tokens", -1), ("max_sequences", 0), ("delimiters", ("",))],
)
def test_engine_config(field: str, value: object):
    with pytest.raises(SteerError, match=field):
        EngineConfig(**{field: value})


def test_context_beyond_the_models():
    with pytest.raises(SteerError, match="max_context 999 exceeds the models' 256"):
        Engine("tiny", config=EngineConfig(max_context=999))


def test_unknown_dtype():
    with pytest.raises(SteerError, match="unknown dtype 'int3'; known: float32, bfloat16, auto"):
        Engine("tiny", dtype="int3")


def test_a_refused_prompt_leaves_the_others_untouched(engine: Engine):
    """One bad prompt of many: nothing stays behind and the engine goes on."""
    with pytest.raises(SteerError):
        engine.generate([PROMPT, ""])
    engine.scheduler.check_integrity()
    assert engine.scheduler.running == engine.scheduler.waiting == 0
    assert engine.generate([PROMPT])[0].finish_reason == "stop"


@pytest.mark.parametrize("answer", ["medium", None, 3])
def test_a_callable_that_answers_nonsense(engine: Engine, answer: object):
    with pytest.raises(SteerError, match="a policy must answer 'small', 'large' or a Decision"):
        engine.generate([PROMPT], policy=lambda boundary: answer)
    assert engine.generate([PROMPT])[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "48"), ("hidden_size", 48.0), ("num_attention_heads", 0),
        ("num_hidden_layers", None), ("max_position_embeddings", "256"), ("rms_norm_eps", "1e-6"),
        ("rms_norm_eps", -1.0), ("num_key_value_heads", True), ("rope_parameters", "x"),
        ("rope_theta", "ten"), ("tie_word_embeddings", "no"), ("architectures", 3),
        ("eos_token_id", -1),
    ],
)  # fmt: skip
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


def test_text_that_the_tokenizer_cannot_write(engine: Engine):
    with pytest.raises(SteerError, match="the tokenizer does not know 'Z'"):
        engine.generate(["47+1Zebra"])
    with pytest.raises(SteerError, match="not valid Unicode"):
        engine.generate(["47\udcff"])


def test_one_text_is_no_list_of_prompts(engine: Engine):
    with pytest.raises(SteerError, match="takes a list of prompts"):
        engine.generate(PROMPT)


@pytest.mark.parametrize(
    "field", [{"max_tokens": 5.5}, {"top_k": 2**70}, {"stop_token_ids": ("a",)}, {"seed": "x"},
              {"temperature": "hot"}, {"max_tokens": 99999999999}, {"repetition_penalty": "1"},
              {"repetition_penalty": True}, {"repetition_penalty": None}, {"presence_penalty": "a"},
              {"presence_penalty": False}, {"frequency_penalty": [1.0]}, {"logprobs": True},
              {"frequency_penalty": None}, {"logprobs": 2.0}, {"logprobs": "5"}, {"logprobs": []}],
)  # fmt: skip
def test_sampling_params_of_the_wrong_type(field: dict[str, object]):
    with pytest.raises(SteerError, match=f"^{next(iter(field))} must be .*"):
        SamplingParams(**field)


@pytest.mark.parametrize(
    ("biases", "found"),
    [
        ([(3, 1.0)], "a list"), (None, "a NoneType"), ("3", "a str"), ({3}, "a set"),
        ({"3": 1.0}, "1.0 for '3'"), ({3.0: 1.0}, "1.0 for 3.0"), ({True: 1.0}, "1.0 for True"),
        ({-1: 1.0}, "1.0 for -1"), ({2**31: 1}, "1 for 2147483648"), ({3: "1"}, "'1' for 3"),
        ({3: True}, "True for 3"), ({3: None}, "None for 3"), ({3: float("nan")}, "nan for 3"),
        ({3: 100.5}, "100.5 for 3"), ({1: 5, 3: -101}, "-101 for 3"),
    ],
)  # fmt: skip
def test_biases_that_are_none(biases: object, found: str):
    expected = "logit_bias must map token ids to numbers in [-100, 100], got " + found
    with pytest.raises(SteerError, match=f"^{re.escape(expected)}$"):
        SamplingParams(logit_bias=biases)


def test_a_priority_that_is_no_number(engine: Engine):
    with pytest.raises(SteerError, match="priority must be a whole number"):
        engine.submit(PROMPT, priority="high")


def test_a_tiny_temperature_is_nearly_greedy(engine: Engine):
    """Dividing by it must not overflow."""
    greedy = engine.generate([PROMPT])[0].text
    assert engine.generate([PROMPT], SamplingParams(temperature=1e-310))[0].text == greedy


def test_other_weights_are_another_pair(engine: Engine, folder: Path):
    """A calibration must not survive a change of any tensor, or of the delimiters."""
    edit_tensors(folder, lambda t: t["model.layers.1.mlp.down_proj.weight"].mul_(0.5))
    assert load(folder).fingerprint != engine.fingerprint
    other = Engine("tiny", config=EngineConfig(delimiters=("\n",)))
    assert other.fingerprint != engine.fingerprint
    assert Engine("tiny", config=EngineConfig(block_tokens=4)).fingerprint == engine.fingerprint
