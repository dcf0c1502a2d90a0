"""Reads Hugging Face folders: config.json and safetensors, checked name by name. No pickles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.config import ModelConfig
from engine.errors import SteerError
from engine.files import read_text

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_config(folder: Path) -> ModelConfig:
    """The model's shape; end-of-sequence ids of generation_config.json win over config.json's."""
    if not folder.is_dir():
        raise SteerError(f"{folder}: no such folder; expected a Hugging Face checkpoint folder")
    raw = _read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    if generation.is_file():
        eos = _read_json(generation).get("eos_token_id")
        raw = raw if eos is None else {**raw, "eos_token_id": eos}
    return ModelConfig.from_hf(raw, str(folder / "config.json"))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SteerError(
            f"{path.parent}: {path.name} is missing; expected a Hugging Face checkpoint folder"
        )
    try:
        content = json.loads(read_text(path, "file"))
    except json.JSONDecodeError as error:
        raise SteerError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise SteerError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a Qwen2 checkpoint of this shape holds."""
    hidden, width = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tied:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        for name, rows in (
            ("q", config.query_width), ("k", config.kv_width), ("v", config.kv_width),
        ):  # fmt: skip
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (rows, hidden)
            shapes[f"{prefix}.self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (hidden, config.query_width)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = (width, hidden)
        shapes[f"{prefix}.mlp.up_proj.weight"] = (width, hidden)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, width)
    return shapes


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        single = folder / "model.safetensors"
        if not single.is_file():
            raise SteerError(f"{folder}: model.safetensors is missing (pickles are never loaded)")
        return [single]
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SteerError(f"{index}: expected a weight_map from tensor names to files")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise SteerError(f"{index}: shard {name!r} is not a safetensors file of this folder")
        if not (folder / name).is_file():
            raise SteerError(f"{folder}: shard {name} is missing")
    return [folder / name for name in names]


def load_weights(folder: Path, config: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors by name, converted to ``dtype``.

    Raises SteerError on missing, extra, doubled or mis-shaped tensors and unreadable files.
    """
    expected, weights = expected_shapes(config), {}
    for path in _shards(folder):
        for name, tensor in _read_shard(path):
            if name not in expected:
                if config.tied and name == "lm_head.weight":
                    continue  # a tied head is written out by some exporters: the embedding counts
                raise SteerError(f"{path}: unexpected tensor {name}")
            if name in weights:
                raise SteerError(f"{path}: tensor {name} appears twice")
            if tuple(tensor.shape) != expected[name]:
                raise SteerError(
                    f"{path}: tensor {name} has shape {tuple(tensor.shape)}, "
                    f"config.json asks for {expected[name]}"
                )
            if tensor.dtype not in _DTYPES:
                raise SteerError(
                    f"{path}: tensor {name} is {tensor.dtype}; expected float32, bfloat16 or "
                    "float16"
                )
            weights[name] = tensor.to(dtype)
    missing = [name for name in expected if name not in weights]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SteerError(f"{folder}: tensor {missing[0]}{more} is missing")
    return weights


def _read_shard(path: Path) -> list[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as shard:
            return [(name, shard.get_tensor(name)) for name in shard.keys()]  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SteerError(f"{path}: not a readable safetensors file: {error}") from None
