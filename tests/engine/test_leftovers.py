"""Tensors of a checkpoint that its model does not need: harmless ones load, others are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from bench.gpu_quick.families import TOKENS
from bench.gpu_quick.families import checkpoint as family
from engine import Engine, SamplingParams, SteerError

from .test_quantised import checkpoint as quantised

PROMPT = [*range(2, 20)]
LAYER = "model.layers.1."
Tensors = dict[str, Tensor]


def change(folder: Path, alter: Callable[[Tensors], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    alter(tensors)
    save_file(tensors, path, {"format": "pt"})


def greedy(folder: Path) -> list[int]:
    engine = Engine("custom", small=folder, large=folder)
    (done,) = engine.generate([PROMPT], SamplingParams(24), "large")
    return list(done.token_ids)


@torch.no_grad()
def greedy_by_transformers(folder: Path) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = list(PROMPT)
    for _ in range(24):
        text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(PROMPT) :]


def zeros(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def biases(value: float) -> Tensors:
    """As AutoGPTQ writes them: one for each packed layer."""
    return {
        f"model.layers.{n}.mlp.{name}.bias": torch.full((size,), value, dtype=torch.float16)
        for n in range(2)
        for name, size in (("gate_proj", 80), ("up_proj", 80), ("down_proj", 48))
    }


ROTARY = {
    f"{LAYER}self_attn.rotary_emb.inv_freq": torch.ones(4),
    f"{LAYER}self_attn.rotary_emb.cos_cached": torch.ones(1, 1, 64, 8),
    f"{LAYER}self_attn.rotary_emb.sin_cached": torch.ones(1, 1, 64, 8),
    "model.rotary_emb.inv_freq": torch.ones(4),
}
CACHE_SCALES = {
    f"{LAYER}self_attn.{name}": torch.tensor(0.03)
    for name in ("k_scale", "v_scale", "attn.k_scale", "kv_scale", "prob_scale", "k_zero_point")
}
ACTIVATIONS = {
    f"{LAYER}mlp.up_proj.{name}": torch.tensor(0.03)
    for name in ("input_scale", "output_scale", "act_scale", "input_zero_point", "input_scale_ub")
}
PACKED_ZEROS = {f"{LAYER}mlp.up_proj.weight_zero_point": zeros(80, 3, dtype=torch.int8)}
FP8_ZEROS = {f"{LAYER}mlp.up_proj.weight_zero_point": zeros(1).to(torch.float8_e4m3fn)}
HARMLESS: dict[str, tuple[str, Tensors]] = {
    "gptq, biases of zeros": ("gptq", biases(0.0)),
    "gptq act order, biases of zeros": ("gptq act order", biases(0.0)),
    "awq, biases of zeros": ("awq", biases(0.0)),
    "gptq, rotary tables": ("gptq", ROTARY),
    "fp8, scales of a KV cache": ("fp8", CACHE_SCALES),
    "fp8, scales of activations": ("fp8", ACTIVATIONS),
    "packed, zero points of zero": ("packed", PACKED_ZEROS),
    "float rows, zero points of zero": ("float rows", FP8_ZEROS),
    "gptq, bias of the head": ("gptq", {"lm_head.bias": zeros(len(TOKENS))}),
    "gptq, bias of a norm": ("gptq", {f"{LAYER}input_layernorm.bias": zeros(48)}),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_what_changes_nothing_loads(case: str, tmp_path: Path):
    form, extra = HARMLESS[case]
    quantised(form, tmp_path)
    before = greedy(tmp_path)
    change(tmp_path, lambda tensors: tensors.update(extra))
    assert greedy(tmp_path) == before


@pytest.mark.parametrize("extra", [biases(0.0), ROTARY, CACHE_SCALES])
def test_plain_folders_may_hold_them_too(extra: Tensors, tmp_path: Path):
    family("llama", {"intermediate_size": 80}, tmp_path)
    change(tmp_path, lambda tensors: tensors.update(extra))
    assert greedy(tmp_path) == greedy_by_transformers(tmp_path)


def test_a_group_index_in_order_says_nothing(tmp_path: Path):
    quantised("gptq", tmp_path)
    with_index = greedy(tmp_path)
    change(tmp_path, lambda ts: [ts.pop(name) for name in [*ts] if name.endswith("g_idx")])
    assert greedy(tmp_path) == with_index


REFUSED: dict[str, tuple[str, Tensors, str]] = {
    "a bias": (
        "gptq",
        biases(0.0) | {f"{LAYER}mlp.up_proj.bias": torch.arange(80.0)},
        r"tensor model\.layers\.1\.mlp\.up_proj\.bias is not zero, and this layer has no bias by "
        r"config\.json",
    ),
    "not a number": (
        "gptq",
        biases(0.0) | {f"{LAYER}mlp.up_proj.bias": torch.full((80,), torch.nan)},
        "is not zero",
    ),
    "zero points": (
        "packed",
        {f"{LAYER}mlp.up_proj.weight_zero_point": zeros(80, 3, dtype=torch.int8) + 1},
        r"up_proj\.weight_zero_point is not zero, and this layer has no zero points by",
    ),
    "a layer too many": (
        "gptq",
        {"model.layers.2.mlp.up_proj.bias": zeros(80)},
        r"unexpected tensor model\.layers\.2\.mlp\.up_proj\.bias",
    ),
    "a packed head": (
        "gptq",
        {"lm_head.qweight": zeros(6, 38, dtype=torch.int32)},
        r"unexpected tensor lm_head\.qweight",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_the_text_is_named(case: str, tmp_path: Path):
    form, extra, message = REFUSED[case]
    quantised(form, tmp_path)
    change(tmp_path, lambda tensors: tensors.update(extra))
    with pytest.raises(SteerError, match=rf"model\.safetensors: .*{message}"):
        greedy(tmp_path)


def written_out(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def different(tensors: Tensors) -> None:
    written_out(tensors)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].flip(0)


def only_the_head(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight").flip(0)


@pytest.mark.parametrize(
    ("alter", "tied"), [(written_out, True), (different, False), (only_the_head, True)]
)
def test_a_tied_head_that_is_written_out(alter: Callable, tied: bool, tmp_path: Path, caplog):
    """Equal: tied. Different: not tied, whatever config.json says. Alone: the embedding too."""
    family("qwen2", {"tie_word_embeddings": True}, tmp_path)
    change(tmp_path, alter)
    assert greedy(tmp_path) == greedy_by_transformers(tmp_path)
    assert Engine("custom", small=tmp_path, large=tmp_path).shapes[0].tied == tied
    assert ("they stay apart" in caplog.text) != tied


def test_neither_head_nor_embedding(tmp_path: Path):
    family("qwen2", {"tie_word_embeddings": True}, tmp_path)
    change(tmp_path, lambda tensors: tensors.pop("model.embed_tokens.weight"))
    with pytest.raises(SteerError, match=r"tensor model\.embed_tokens\.weight is missing"):
        greedy(tmp_path)
