"""Quantised checkpoints against plain dequantisation, packed here from the formats' own words.

Each writer draws integers, zero points and scales at random, packs them bit by bit as the format's
documentation has it, and says what matrix they stand for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from engine import Engine, EngineConfig, SamplingParams, SteerError
from engine.accounting.pricing import weight_bytes
from engine.device.memory_budget import workspace_bytes
from engine.models.checkpoint import load_config, load_weights
from engine.models.decoder import Decoder
from engine.models.footprint import stored_bytes
from kernels import ops
from kernels.backends.triton import TritonBackend

from .conftest import TOKENS, build_tokenizer

GROUP = 16
Written = tuple[Tensor, dict[str, Tensor]]  # the matrix [out, in], and the tensors by suffix


def words(rows: np.ndarray, bits: int, order: tuple[int, ...]) -> np.ndarray:
    """Each run of 32 / bits numbers of a row into one word; ``order[j]`` goes to the j-th place."""
    pack = 32 // bits
    out = np.zeros((rows.shape[0], rows.shape[1] // pack), np.uint32)
    for row in range(rows.shape[0]):
        for word in range(out.shape[1]):
            for place, which in enumerate(order):
                value = int(rows[row, word * pack + which]) & (2**bits - 1)
                out[row, word] |= np.uint32(value << (bits * place))
    return out.view(np.int32)


def straight(bits: int) -> tuple[int, ...]:
    return tuple(range(32 // bits))


def drawn(
    rng: np.random.Generator, out: int, columns: int, bits: int, group: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [out, in], zero points and scales [out, groups]."""
    groups = -(-columns // group)
    codes = rng.integers(0, 2**bits, (out, columns))
    zeros = rng.integers(1, 2**bits, (out, groups))
    return codes, zeros, rng.uniform(0.5, 1.5, (out, groups)).astype(np.float16) / 2**bits


def plain(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, group_of: Any) -> Tensor:
    matrix = np.zeros(codes.shape)
    for column in range(codes.shape[1]):
        g = int(group_of[column])
        matrix[:, column] = (codes[:, column] - zeros[:, g]) * scales[:, g].astype(np.float64)
    return torch.from_numpy(matrix).float()


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def gptq(bits: int, shift: int, act_order: bool = False, group: int = GROUP) -> Callable:
    """AutoGPTQ: qweight [in / 8, out] and qzeros [groups, out / 8], packed down and across."""

    def write(rng: np.random.Generator, out: int, columns: int) -> Written:
        size = group if group > 0 else columns
        codes, zeros, scales = drawn(rng, out, columns, bits, size)
        index = np.arange(columns) // size
        index = rng.permutation(index) if act_order else index
        return plain(codes, zeros, scales, index), {
            "qweight": tensor(words(codes, bits, straight(bits)).T),
            "qzeros": tensor(words(zeros.T - shift, bits, straight(bits))),
            "scales": tensor(scales.T),
            "g_idx": tensor(index.astype(np.int32)),
        }

    return write


def awq(rng: np.random.Generator, out: int, columns: int) -> Written:
    """AutoAWQ: qweight [in, out / 8], of eight outputs the even ones first in a word."""
    codes, zeros, scales = drawn(rng, out, columns, 4, GROUP)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return plain(codes, zeros, scales, np.arange(columns) // GROUP), {
        "qweight": tensor(words(codes.T, 4, order)),
        "qzeros": tensor(words(zeros.T, 4, order)),
        "scales": tensor(scales.T),
    }


def packed(bits: int, symmetric: bool, group: int = GROUP, act_order: bool = False) -> Callable:
    """compressed-tensors: signed numbers plus 2^(bits-1), weight_packed [out, in / 8]."""

    def write(rng: np.random.Generator, out: int, columns: int) -> Written:
        size = group if group > 0 else columns
        codes, zeros, scales = drawn(rng, out, columns, bits, size)
        zeros = np.full_like(zeros, 2 ** (bits - 1)) if symmetric else zeros
        index = np.arange(columns) // size
        index = rng.permutation(index) if act_order else index
        tensors = {
            "weight_packed": tensor(words(codes, bits, straight(bits))),
            "weight_scale": tensor(scales),
            "weight_shape": torch.tensor([out, columns]),
        }
        if not symmetric:
            tensors["weight_zero_point"] = tensor(words(zeros.T, bits, straight(bits)).T)
        if act_order:
            tensors["weight_g_idx"] = tensor(index.astype(np.int32))
        return plain(codes, zeros, scales, index), tensors

    return write


def fp8(strategy: str, name: str) -> Callable:
    """float8_e4m3fn numbers, multiplied by a scale of their tensor, row or 32 x 16 block."""

    def write(rng: np.random.Generator, out: int, columns: int) -> Written:
        codes = tensor(rng.normal(0, 20, (out, columns))).to(torch.float8_e4m3fn)
        shape = {"tensor": (1,), "channel": (out, 1), "block": (-(-out // 32), -(-columns // 16))}
        scales = tensor(rng.uniform(0.5, 1.5, shape[strategy])).float() / 50
        matrix = torch.zeros(out, columns)
        for row in range(out):
            for column in range(columns):
                at = {"tensor": 0, "channel": (row, 0), "block": (row // 32, column // 16)}
                matrix[row, column] = codes[row, column].float() * scales[at[strategy]]
        tensors = {"weight": codes, name: scales, "input_scale": torch.ones(1)}
        return matrix, tensors

    return write


def compressed(form: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "input_activations": None, "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
FP8 = {"num_bits": 8, "type": "float"}
CASES: dict[str, tuple[Callable, dict[str, Any]]] = {
    "gptq": (gptq(4, 1), GPTQ),
    "gptq v2": (gptq(4, 0), GPTQ | {"checkpoint_format": "gptq_v2"}),
    "gptq act order": (gptq(4, 1, act_order=True), GPTQ | {"desc_act": True}),
    "gptq 8 bits": (gptq(8, 1), GPTQ | {"bits": 8}),
    "gptq whole rows": (gptq(4, 1, group=-1), GPTQ | {"group_size": -1}),
    "gptq ragged": (gptq(4, 1, group=24), GPTQ | {"group_size": 24}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "GEMM"}),
    "packed": (packed(4, True), compressed("pack-quantized", **INT4, symmetric=True)),
    "packed, zeros": (packed(4, False), compressed("pack-quantized", **INT4, symmetric=False)),
    "packed act order": (
        packed(4, True, act_order=True),
        compressed("pack-quantized", **INT4, symmetric=True, actorder="group"),
    ),
    "packed 8 bit rows": (
        packed(8, True, group=-1),
        compressed("pack-quantized", **INT4 | {"num_bits": 8, "strategy": "channel"}),
    ),
    "fp8": (fp8("tensor", "weight_scale"), {"quant_method": "fp8", "activation_scheme": "static"}),
    "fbgemm": (
        fp8("channel", "weight_scale"),
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
    ),
    "fp8 blocks": (
        fp8("block", "weight_scale_inv"),
        {"quant_method": "fp8", "weight_block_size": [32, 16], "fmt": "e4m3"},
    ),
    "float rows": (
        fp8("channel", "weight_scale"),
        compressed("float-quantized", **FP8, strategy="channel"),
    ),
    "float blocks": (
        fp8("block", "weight_scale"),
        compressed("float-quantized", **FP8, strategy="block", block_structure=[32, 16]),
    ),
}


def checkpoint(
    case: str, folder: Path, plain: str = "1.self_attn.k_proj", hidden: int = 48
) -> LlamaForCausalLM:
    """A quantised folder; the model holds the same weights dequantised.

    ``plain``: a layer that is left as it was, as checkpoints do; a part of a fused one.
    """
    write, description = CASES[case]
    torch.manual_seed(3)
    rng = np.random.default_rng(3)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=hidden,
        intermediate_size=hidden + 32,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        attention_bias=True,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).float().eval()
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, layer in model.model.layers.named_modules():
        if isinstance(layer, nn.Linear) and name != plain:
            matrix, stored = write(rng, *layer.weight.shape)
            layer.weight.data = matrix
            del tensors[f"model.layers.{name}.weight"]
            tensors |= {f"model.layers.{name}.{suffix}": t for suffix, t in stored.items()}
    save_file(tensors, folder / "model.safetensors")
    build_tokenizer().save(str(folder / "tokenizer.json"))
    edit_config(folder, quantization_config=description)
    return model


def edit_config(folder: Path, **changes: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | changes))


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
