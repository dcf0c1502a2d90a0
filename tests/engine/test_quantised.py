"""Quantised checkpoints against plain dequantisation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import Engine, EngineConfig, SamplingParams, SteerError
from engine.accounting.pricing import weight_bytes
from engine.device.memory_budget import workspace_bytes
from engine.models.checkpoint import load_config, load_weights
from engine.models.decoder import Decoder
from engine.models.footprint import stored_bytes
from kernels import ops
from kernels.backends.triton import TritonBackend
from tests.engine.quantised_checkpoints import (
    CASES,
    GPTQ,
    INT4,
    checkpoint,
    compressed,
    edit_config,
)

from .conftest import TOKENS


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_the_dequantised_model(case: str, tmp_path: Path):
    model = checkpoint(case, tmp_path)
    engine = Engine("custom", small=tmp_path, large=tmp_path)
    prompt = torch.randint(2, len(TOKENS), (20,)).tolist()
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=1, logprobs=20)
    (done,) = engine.generate([prompt], params, "large")
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *done.token_ids]])).logits[0]
    expected = logits.log_softmax(-1)
    for place, said in enumerate(done.logprobs, 19):
        for token, value in said.top:
            assert value == pytest.approx(float(expected[place, token]), abs=1e-4)


@pytest.mark.parametrize(
    "case", ["gptq", "awq", "packed", "packed, zeros", "fp8", "fp8 blocks", "float rows"]
)
def test_what_is_packed_stays_packed(case: str, tmp_path: Path):
    """Bits of a weight: 4 or 8 and the scales, as on disk, and so are they counted."""
    checkpoint(case, tmp_path, plain="")
    config = load_config(tmp_path)
    weights = load_weights(tmp_path, config, torch.float32)
    kept = sum(t.numel() * t.itemsize for w in weights.values() for t in ops.weight_tensors(w))
    assert stored_bytes(config, 4) == kept == Decoder(config, weights, 16, ops.CpuBackend()).bytes
    assert weight_bytes(config, 4) == kept - 4 * len(TOKENS) * 48  # the embedding is not read
    layer = weights["model.layers.0.mlp.gate_up_proj.weight"]
    bits = 8 * sum(t.numel() * t.itemsize for t in ops.weight_tensors(layer)) / (160 * 48)
    assert 8 <= bits < 8.7 if "fp8" in case or "float" in case else 4 <= bits <= 6.5
    assert layer.shape == (160, 48)


@pytest.mark.parametrize("case", ["gptq", "fp8 blocks"])
def test_layers_that_were_left_plain_are_counted(case: str, tmp_path: Path):
    """Whatever config.json says of them: what is there counts."""
    checkpoint(case, tmp_path / "all", plain="")
    checkpoint(case, tmp_path / "most")
    sizes = []
    for name in ("all", "most"):
        config = load_config(tmp_path / name)
        weights = load_weights(tmp_path / name, config, torch.float32)
        kept = sum(t.numel() * t.itemsize for w in weights.values() for t in ops.weight_tensors(w))
        assert stored_bytes(config, 4) == kept
        sizes.append(kept)
    assert config.quantisation.plain == ("model.layers.1.self_attn.k_proj",)
    rows, columns = 16, 48
    assert sizes[1] > sizes[0] + 2 * rows * columns  # four bytes each in place of one or less


def test_a_folder_without_weights_has_a_shape(tmp_path: Path):
    checkpoint("gptq", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert load_config(tmp_path).quantisation.plain == ()


def test_packed_weights_need_room_to_be_dequantised(tmp_path: Path):
    checkpoint("gptq", tmp_path)
    quantised, config = load_config(tmp_path), EngineConfig()
    room = workspace_bytes(quantised, config, 2)
    assert room == workspace_bytes(replace(quantised, quantisation=None), config, 2) + ops.WORKSPACE
    assert ops.WORKSPACE < 2**28


@pytest.mark.parametrize("case", CASES)
def test_fused_layers_are_one_weight(case: str, tmp_path: Path):
    """Where their parts are of one kind, so that a GPU multiplies with all of them at once."""
    model = checkpoint(case, tmp_path, hidden=96)
    weights = load_weights(tmp_path, load_config(tmp_path), torch.float32)
    prefix = "model.layers.{}.{}.weight"
    mixed = weights[prefix.format(1, "self_attn.qkv_proj")]
    assert isinstance(mixed, ops.StackedWeight) and len(mixed.parts) == 3
    expected = [getattr(model.model.layers[1].self_attn, f"{n}_proj").weight for n in "qkv"]
    torch.testing.assert_close(mixed.dequantise(torch.float32), torch.cat(expected))
    apart = "act order" in case  # each part has an order of its own
    for name in ("self_attn.qkv_proj", "mlp.gate_up_proj"):
        assert isinstance(weights[prefix.format(0, name)], ops.StackedWeight) == apart


@pytest.mark.skipif(torch.cuda.is_available(), reason="runs kernels in the interpreter")
@pytest.mark.parametrize("case", ["gptq", "gptq act order", "awq", "packed", "fp8 blocks", "fp8"])
def test_products_by_the_kernels(case: str, tmp_path: Path):
    """What a checkpoint becomes is what the kernels take: interpreted, against its matrices."""
    model = checkpoint(case, tmp_path, hidden=96)
    weights = load_weights(tmp_path, load_config(tmp_path), torch.float32)
    layer = model.model.layers[0]
    whole = {
        "self_attn.qkv_proj": [
            layer.self_attn.q_proj,
            layer.self_attn.k_proj,
            layer.self_attn.v_proj,
        ],
        "self_attn.o_proj": [layer.self_attn.o_proj],
        "mlp.gate_up_proj": [layer.mlp.gate_proj, layer.mlp.up_proj],
        "mlp.down_proj": [layer.mlp.down_proj],
    }
    for name, parts in whole.items():
        matrix = torch.cat([part.weight for part in parts]).detach().double()
        x = torch.randn(3, matrix.shape[1])
        found = TritonBackend(x.device).linear(x, weights[f"model.layers.0.{name}.weight"])
        torch.testing.assert_close(found.double(), x.double() @ matrix.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["gptq act order", "awq", "fp8 blocks"])
def test_weights_go_where_the_model_is(case: str, tmp_path: Path):
    """Onto a device without memory here, which takes the shapes alone."""
    checkpoint(case, tmp_path)
    config = load_config(tmp_path)
    here = load_weights(tmp_path, config, torch.bfloat16)
    there = load_weights(tmp_path, config, torch.bfloat16, device="meta")
    for name, weight in here.items():
        pairs = zip(ops.weight_tensors(weight), ops.weight_tensors(there[name]), strict=True)
        for one, other in pairs:
            assert other.is_meta and (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes' is not supported"),
        ({}, "unexpected tensor model.layers.0.mlp.down_proj.g_idx"),
        (GPTQ | {"bits": 3}, "3 bits are not supported"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is not supported"),
        (GPTQ | {"group_size": 32}, "has shape"),
        ({"quant_method": "gptq", "bits": 4}, "'group_size' is missing"),
        ({"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemv"}, "version 'gemv'"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt 'e5m2' is not supported"),
        (compressed("marlin-24", **INT4), "format 'marlin-24'"),
        (compressed("nvfp4-pack-quantized", **INT4), "is not supported: pack-quantized and"),
        ({"quant_method": "compressed-tensors"}, "'config_groups' is missing"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, description, message: str):
    checkpoint("gptq", tmp_path)
    edit_config(tmp_path, quantization_config=description)
    with pytest.raises(SteerError, match=message):
        load_weights(tmp_path, load_config(tmp_path), torch.float32)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"up_proj: a group index is not in 0\.\.2"),
        (2, "up_proj: group indices must give each group 16 columns, the last the rest"),
    ],
)
def test_a_wrong_index_is_named(tmp_path: Path, value: int, message: str):
    checkpoint("gptq", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.g_idx"][5] = value
    save_file(tensors, path)
    with pytest.raises(SteerError, match=message):
        load_weights(tmp_path, load_config(tmp_path), torch.float32)
