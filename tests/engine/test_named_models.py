"""Named shapes against what is published, named pairs, and mixtures of experts: refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.expert_mixtures import parameters
from bench.lanes.pairs import dummy_pair
from bench.simulate import main as simulate
from engine import Engine, EngineConfig, Pair, SamplingParams, SteerError
from engine.cli import main as steer
from engine.config import ModelConfig
from engine.config.expert_mixtures import NAMED_MIXTURES
from engine.config.named_models import NAMED_MODELS
from engine.config.pairs import NAMED_PAIRS
from engine.models.config_json import parse_config
from engine.models.footprint import stored_bytes

# As the repositories count them; a head that repeats a tied embedding is not counted.
PUBLISHED = {
    "qwen-0.5b": 494_032_768,
    "qwen-1.5b": 1_543_714_304,
    "qwen-3b": 3_085_938_688,
    "qwen-7b": 7_615_616_512,
    "qwen-14b": 14_770_033_664,
    "qwen-32b": 32_763_876_352,
    "qwen-72b": 72_706_203_648,
    "qwen-coder-0.5b": 494_032_768,
    "qwen-coder-1.5b": 1_543_714_304,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "llama-1b": 1_235_814_400,
    "llama-8b": 8_030_261_248,
    "llama-70b": 70_553_706_496,
}
MIXTURES = {
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
}


def test_parameters_are_those_of_the_checkpoints():
    assert {name: stored_bytes(shape, 1) for name, shape in NAMED_MODELS.items()} == PUBLISHED
    assert {name: parameters(mixture) for name, mixture in NAMED_MIXTURES.items()} == MIXTURES


QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}


@pytest.mark.parametrize(("name", "raw"), [("qwen3-0.6b", QWEN3), ("llama-1b", LLAMA)])
def test_a_named_shape_is_what_its_config_json_says(name: str, raw: dict[str, object]):
    assert parse_config(raw) == NAMED_MODELS[name]


def test_every_named_model_is_in_a_pair_and_every_pair_has_shapes():
    halves = [half for name in NAMED_PAIRS if "/" in name for half in name.split("/")]
    assert set(halves) == set(NAMED_MODELS)
    for name in NAMED_PAIRS[2:]:
        small, large = Pair.named(name).shapes
        assert stored_bytes(small, 1) < stored_bytes(large, 1)


def test_folders_must_hold_what_the_name_says():
    pair = Pair.named("qwen3-0.6b/qwen3-8b")
    small, large = pair.shapes
    pair.check_shapes((replace(small, tied=False), large))  # a file may repeat the head
    with pytest.raises(SteerError, match="this is not qwen3-8b: head_dim is 64, expected 128"):
        pair.check_shapes((small, replace(large, head_dim=64)))


def shrunk(shape: ModelConfig) -> ModelConfig:
    """What makes the family stays: norms of heads, biases, rotary scaling, the tied head."""
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "layers": 2, "heads": 4}
    return replace(shape, **sizes, kv_heads=2)


@pytest.mark.parametrize("name", ["qwen3-0.6b/qwen3-8b", "llama-1b/llama-8b"])
def test_dummy_weights_of_the_families(name: str):
    small, large = map(shrunk, Pair.named(name).shapes)
    config = EngineConfig(load_format="dummy", arena_tokens=1024, max_context=256)
    engine = Engine(Pair("small enough", made_up=(small, large)), config=config, dtype="float32")
    params = SamplingParams(max_tokens=12, min_tokens=12)
    answer = engine.generate([[5, 6, 7]], params, policy="large")[0]
    assert answer.usage.count("large", "sampled") == 12


def test_steer_pairs_names_them_all(capsys):
    assert steer(["pairs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "custom: any two folders or GGUF files"
    assert [line.split(": ")[0] for line in lines] == list(NAMED_PAIRS)


@pytest.mark.parametrize("name", [*NAMED_MIXTURES, "qwen3-0.6b/qwen3-30b-a3b"])
def test_a_mixture_of_experts_is_refused_in_one_line(name: str, capsys):
    refused = f"{name.split('/')[-1]} is a mixture of experts, which this engine does not run"
    dummy = EngineConfig(load_format="dummy")
    for attempt in (lambda: Engine(name, config=dummy), lambda: dummy_pair(name)):
        with pytest.raises(SteerError, match=refused):
            attempt()
    for command, flags in (
        (steer, ["generate", "a prompt", f"--pair={name}"]),
        (simulate, [f"--model-pair={name}"]),
    ):
        assert command(flags) == 2
        error = capsys.readouterr().err
        assert refused in error and error.count("\n") == 1
