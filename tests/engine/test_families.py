"""Every family and rotary scaling says what transformers says, from folders on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu_quick.families import LLAMA3, TOKENS, YARN, checkpoint
from engine import Engine, EngineConfig, SamplingParams, SteerError
from engine.config import ModelConfig
from engine.models.checkpoint import load_config

LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
DEEPSEEK = YARN | {"mscale": 0.7, "mscale_all_dim": 0.3, "beta_fast": 8, "beta_slow": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen2 tied, yarn": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 tied, biased": (
        "qwen3",
        {"head_dim": 12, "tie_word_embeddings": True, "attention_bias": True},
    ),
    "llama 2": ("llama", {"num_key_value_heads": 6}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3}),
    "llama linear": ("llama", {"rope_parameters": LINEAR, "head_dim": 10}),
    "llama all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "smollm2": (
        "llama",
        {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1},
    ),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral, window": ("mistral", {"sliding_window": 90}),
    "mistral yarn": ("mistral", {"sliding_window": None, "rope_parameters": DEEPSEEK}),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tmp_path: Path):
    """Log-probabilities of 40 tokens after a prompt of 50, beyond the original context."""
    model = checkpoint(*CASES[case], tmp_path)
    engine = Engine("custom", small=tmp_path, large=tmp_path)
    prompt = torch.randint(2, len(TOKENS), (50,)).tolist()
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=1, logprobs=20)
    (done,) = engine.generate([prompt], params, "small")
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *done.token_ids]])).logits[0]
    expected = logits.log_softmax(-1)
    for place, (token, said) in enumerate(zip(done.token_ids, done.logprobs, strict=True), 49):
        assert said.logprob == pytest.approx(float(expected[place, token]), abs=1e-4)
        for other, value in said.top:
            assert value == pytest.approx(float(expected[place, other]), abs=1e-4)


def test_a_sliding_window_bounds_the_context(tmp_path: Path):
    """Within a window attention is complete; what would leave it is refused."""
    checkpoint(*CASES["mistral, window"], tmp_path)
    assert Engine("custom", small=tmp_path, large=tmp_path).max_context == 90
    with pytest.raises(SteerError, match="max_context 91 exceeds the models' 90"):
        Engine("custom", small=tmp_path, large=tmp_path, config=EngineConfig(max_context=91))


def config_of(folder: Path, **raw: Any) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(raw))
    return load_config(folder)


def test_published_configs(tmp_path: Path):
    """config.json as published, in the notation of older versions of transformers."""
    base = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    scaling = LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 8192}
    del scaling["rope_theta"]  # it stood beside it
    llama = config_of(
        tmp_path,
        **base,
        architectures=["LlamaForCausalLM"],
        max_position_embeddings=131072,
        rope_theta=500000.0,
        eos_token_id=[128001, 128008, 128009],
        rope_scaling=scaling,
    )
    assert (llama.max_position, llama.rope_theta, llama.head_dim) == (131072, 500000.0, 128)
    assert llama.eos_ids == (128001, 128008, 128009) and not llama.qkv_bias
    mistral = config_of(
        tmp_path,
        **base,
        architectures=["MistralForCausalLM"],
        max_position_embeddings=32768,
        sliding_window=4096,
    )
    assert mistral.max_position == 4096
    qwen = base | {"architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 32768}
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    found = config_of(
        tmp_path, **qwen, rope_scaling=yarn, sliding_window=131072, use_sliding_window=False
    )
    assert found.max_position == 131072 and found.rope.kind == "yarn" and found.qkv_bias
    assert (
        config_of(tmp_path, **qwen, sliding_window=64, use_sliding_window=True).max_position == 64
    )
    qwen3 = config_of(tmp_path, **(base | {"architectures": ["Qwen3ForCausalLM"]}), head_dim=128)
    assert qwen3.qk_norm and not qwen3.qkv_bias and qwen3.query_width == 4096


GENERATION = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "repetition_penalty": 1.05,
    "eos_token_id": [5, 7],
    "max_new_tokens": 9,
}


def test_a_generation_config_is_respected(tmp_path: Path):
    """The large checkpoint's, where a request has no parameters of its own; eos ids always."""
    checkpoint(*CASES["llama 2"], tmp_path / "small")
    checkpoint(*CASES["llama 2"], tmp_path / "large")
    path = tmp_path / "large" / "generation_config.json"
    path.write_text(json.dumps(GENERATION))
    engine = Engine("custom", small=tmp_path / "small", large=tmp_path / "large")
    expected = SamplingParams(9, 0.7, 20, 0.8, repetition_penalty=1.05)
    assert engine.default_params == expected
    prompt = [*range(2, 30)]
    (done,) = engine.generate([prompt], policy="large")
    again = SamplingParams(9, 0.7, 20, 0.8, repetition_penalty=1.05, seed=done.seed)
    assert engine.generate([prompt], again, "large")[0].token_ids == done.token_ids
    assert engine.generate([[5, 6]], SamplingParams(64, 2.0, seed=0), "small")[0].token_ids[-1] in (
        5,
        7,
    )
    path.write_text(json.dumps(GENERATION | {"do_sample": False}))
    greedy = Engine("custom", small=tmp_path / "small", large=tmp_path / "large").default_params
    assert greedy == SamplingParams(9, repetition_penalty=1.05)
    path.write_text(json.dumps(GENERATION | {"top_p": 3}))
    with pytest.raises(SteerError, match=r"generation_config\.json: top_p must be in"):
        Engine("custom", small=tmp_path / "small", large=tmp_path / "large")


ALL_OFF = {
    "suppress_tokens": None,
    "bad_words_ids": [],
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "guidance_scale": 1.0,
    "forced_eos_token_id": None,
    "sequence_bias": {},
    "typical_p": 0.5,
    "token_healing": False,
    "min_length": 0,
    "encoder_repetition_penalty": 1.0,
    "max_length": 77,
    "length_penalty": 2.0,
    "max_new_tokens": 9,
    "do_sample": False,
}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (GENERATION, ""),
        (ALL_OFF, ""),
        (ALL_OFF | {"suppress_tokens": [3]}, "suppress_tokens"),
        (ALL_OFF | {"do_sample": True}, "typical_p"),
        (ALL_OFF | {"max_new_tokens": None}, "max_length"),
        (
            {"bad_words_ids": [[3, 4]], "no_repeat_ngram_size": 3, "num_beams": 4},
            "bad_words_ids, no_repeat_ngram_size, num_beams",
        ),
    ],
)
def test_what_a_generation_config_asks_in_vain_is_named(
    tmp_path: Path, caplog, settings: dict, named: str
):
    """Once a load, and only what would change the text."""
    checkpoint(*CASES["llama 2"], tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    with caplog.at_level("WARNING", logger="engine"):
        Engine("custom", small=tmp_path, large=tmp_path)
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("engine")]
    path = tmp_path / "generation_config.json"
    assert warnings == [f"{path}: not done here, so it is ignored: {named}"] * bool(named)


def test_heads_that_differ_in_padding(tmp_path: Path, prompts):
    """As Qwen2.5's 1.5B and 32B: rows past the vocabulary are never drawn by either model."""
    models = {}
    for role, rows in (("small", 40), ("large", 56)):
        changes = {"vocab_size": rows, "tie_word_embeddings": role == "small"}
        model = checkpoint("qwen2", changes, tmp_path / role)
        model.get_output_embeddings().weight.data[len(TOKENS) :] *= 50  # they would win
        model.save_pretrained(tmp_path / role)
        models[role] = model
    engine = Engine("custom", small=tmp_path / "small", large=tmp_path / "large")
    params = SamplingParams(max_tokens=24, max_step_tokens=5, temperature=1.0, seed=0, logprobs=2)
    turns = {0: "small", 1: "large"}
    done = engine.generate(prompts(8, seed=1), params, lambda b: turns[b.position % 2])
    assert {step.model for c in done for step in c.steps} == {"small", "large"}
    assert max(max(c.token_ids) for c in done) < len(TOKENS)
    for completion in done:
        text = torch.tensor([[*completion.prompt_token_ids, *completion.token_ids]])
        first = len(completion.prompt_token_ids)
        for step in completion.steps:
            with torch.no_grad():
                row = models[step.model](text).logits[0, step.position - 1, : len(TOKENS)]
            said = completion.logprobs[step.position - first].logprob
            assert said == pytest.approx(float(row.log_softmax(-1)[step.token_ids[0]]), abs=1e-4)
