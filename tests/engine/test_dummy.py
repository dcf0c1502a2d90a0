"""Made-up weights: no checkpoint, finite logits, the engine's whole path, no calibration."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine import Calibration, Engine, EngineConfig, SamplingParams, SteerError
from engine.config import ModelConfig, Quantisation
from engine.config.named_models import NAMED_MODELS
from engine.config.pairs import Pair
from engine.models.dummy_weights import DummyWeights, dummy_tokenizer
from engine.models.footprint import stored_bytes
from engine.models.layout import fused_shapes

SMALL = ModelConfig(300, 32, 64, 2, 4, 2, 8, tied=True)
LARGE = ModelConfig(320, 64, 96, 3, 4, 2, 16)
PAIR = Pair("toy", made_up=(SMALL, LARGE))
CONFIG = EngineConfig(load_format="dummy", arena_tokens=1024, max_context=256)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_models_write(dtype: str):
    engine = Engine(PAIR, config=CONFIG, dtype=dtype)
    assert engine.tokenizer.size == 300
    params = SamplingParams(max_tokens=40, max_step_tokens=8, ignore_eos=True, logprobs=1)
    for answer in engine.generate(["any text: ünïcode\n", "b"], params, "random:0.5"):
        assert answer.finish_reason == "length"
        assert {s.model for s in answer.steps} == {"small", "large"}
        assert all(t.logprob is not None and t.logprob > -40 for t in answer.logprobs or ())


def test_the_same_seed_gives_the_same_weights():
    first, again, other = (DummyWeights(LARGE, torch.float32, "cpu", s) for s in (0, 0, 1))
    assert {n: tuple(t.shape) for n, t in first.items()} == fused_shapes(LARGE)
    name = "model.layers.2.mlp.down_proj.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], first["model.layers.1.mlp.down_proj.weight"])


def test_deep_and_wide_stays_finite_in_bf16():
    deep = replace(
        NAMED_MODELS["qwen-32b"],
        hidden_size=256,
        intermediate_size=1382,
        heads=2,
        kv_heads=1,
        vocab_size=512,
    )
    engine = Engine(Pair("deep", made_up=(SMALL, deep)), config=CONFIG, dtype="bfloat16")
    params = SamplingParams(max_tokens=4, ignore_eos=True, logprobs=20)
    (answer,) = engine.generate([[1, 2, 3]], params, "large")
    spread = [p for t in answer.logprobs or () for _, p in t.top]
    assert len(answer.token_ids) == 4
    assert all(-20 < p < 0 for p in spread)


@pytest.mark.parametrize(
    "packing",
    [
        Quantisation("packed", 4, 32),
        Quantisation("packed", 8, symmetric=False),
        Quantisation("fp8", 8, strategy="block", block=(32, 32)),
        Quantisation("fp8", 8, strategy="tensor"),
    ],
)
def test_a_quantised_model_is_made_up_packed(packing: Quantisation):
    """It takes the bytes that a checkpoint of the format would take, and deviates as much."""
    shape = replace(LARGE, quantisation=packing)
    weights = DummyWeights(shape, torch.float32, "cpu", 0)
    packed = [name for name, weight in weights.items() if not isinstance(weight, torch.Tensor)]
    assert len(packed) == 4 * shape.layers
    for name in packed:
        matrix = weights[name].dequantise(torch.float32)
        assert matrix.shape == fused_shapes(shape)[name]
        plain = DummyWeights(LARGE, torch.float32, "cpu", 0)[name]
        assert float(matrix.std()) == pytest.approx(float(plain.std()), rel=0.1)
    engine = Engine(Pair("packed", made_up=(SMALL, shape)), config=CONFIG, dtype="float32")
    assert engine.lanes[1].runner.decoder.bytes == stored_bytes(shape, 4)
    (answer,) = engine.generate([[1, 2]], SamplingParams(max_tokens=4, ignore_eos=True), "large")
    assert len(answer.token_ids) == 4


def test_the_tokenizer_writes_any_text():
    tokenizer = dummy_tokenizer(1000)
    text = "tab\t, \0, ünïcode \N{PILE OF POO}, blank\n\nlines"
    assert tokenizer.size == 1000
    assert len(set(tokenizer.bytes)) == 1000 and all(tokenizer.bytes)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.text_of(range(998, 1000)) == " w998 w999"


def test_folders_give_shapes_and_tokens_only():
    tiny, dummy = Engine("tiny"), Engine("tiny", config=EngineConfig(load_format="dummy"))
    assert dummy.shapes == tiny.shapes
    assert dummy.tokenizer.fingerprint == tiny.tokenizer.fingerprint
    assert dummy.fingerprint != tiny.fingerprint
    with pytest.raises(SteerError, match="fitted on pair tiny"):
        dummy.policy("steer")


def test_what_is_refused():
    with pytest.raises(SteerError, match="unknown load_format 'gguf'; known: safetensors, dummy"):
        EngineConfig(load_format="gguf")
    with pytest.raises(SteerError, match="no weights"):
        Engine(PAIR)
    with pytest.raises(SteerError, match="256 ids or more, got 99"):
        dummy_tokenizer(99)
    engine = Engine(PAIR, config=CONFIG)
    with pytest.raises(SteerError, match="dummy weights calibrate nothing"):
        Calibration.fit(engine.fingerprint, "max_prob", [])
