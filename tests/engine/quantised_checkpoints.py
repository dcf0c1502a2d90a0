"""Quantised checkpoints, packed here from the formats' own words.

Each writer draws integers, zero points and scales at random, packs them bit by bit as the format's
documentation has it, and says what matrix they stand for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

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
