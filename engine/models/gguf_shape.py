"""The shape of a model from a GGUF file's metadata, translated to the keys of a ``config.json``."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from engine.config import ModelConfig
from engine.errors import SteerError
from engine.gguf.file import GgufFile, short
from engine.models.config_json import parse_config
from engine.models.gguf_tensors import ROPE_FACTORS, dequantised_tensor
from engine.text.gguf_tokenizer import end_ids

# llama.cpp's names of architectures, and transformers'. Mistral's files say "llama".
ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
}
# Keys of config.json, their GGUF names, and the types of their values.
_SHAPE_KEYS: tuple[tuple[str, str, type], ...] = (
    ("num_hidden_layers", "block_count", int),
    ("max_position_embeddings", "context_length", int),
    ("hidden_size", "embedding_length", int),
    ("intermediate_size", "feed_forward_length", int),
    ("num_attention_heads", "attention.head_count", int),
    ("num_key_value_heads", "attention.head_count_kv", int),
    ("head_dim", "attention.key_length", int),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon", float),
    ("rope_theta", "rope.freq_base", float),
    ("sliding_window", "attention.sliding_window", int),
)
_NUMBER = (int, float)
_NEEDED = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)
# Keys that are read, and keys without effect. Any other could change the model and is refused.
_READ = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
}
_NO_MATTER = {"vocab_size", "rope.scaling.finetuned", "tensor_data_layout"}
# Keys that are accepted only with the value that switches their feature off.
_OFF: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "use_parallel_residual": (False,),
    "pooling_type": (0,),
    "rope.scaling.yarn_log_multiplier": (0,),
}


def model_config(file: GgufFile) -> ModelConfig:
    """The shape. SteerError, naming the file, on an architecture or a key that is not supported."""
    name = file.get("general.architecture", str)
    if name not in ARCHITECTURES:
        raise SteerError(
            f"{file.path}: architecture {short(name)} is not supported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    _check_keys(file, name)
    config = parse_config(_config_json(file, name), str(file.path))
    if ROPE_FACTORS not in file.tensors:
        return config
    if config.rope.kind != "default":
        raise SteerError(f"{file.path}: {ROPE_FACTORS} beside rope type {config.rope.kind!r}")
    entry, wanted = file.tensors[ROPE_FACTORS], (config.head_dim // 2,)
    if entry.shape != wanted:
        raise SteerError(
            f"{file.path}: tensor {ROPE_FACTORS} has shape {entry.shape}, expected {wanted}"
        )
    factors = dequantised_tensor(entry)
    if not bool((factors > 0).all()):
        raise SteerError(f"{file.path}: tensor {ROPE_FACTORS}: factors must be above 0")
    return replace(config, rope_factors=tuple(shortest(factor.item()) for factor in factors))


def _check_keys(file: GgufFile, name: str) -> None:
    for key in _NEEDED:
        if file.get(f"{name}.{key}", _NUMBER) is None:
            raise SteerError(f"{file.path}: key {name}.{key} is missing")
    layers = file.get(f"{name}.block_count", int)
    if layers > len(file.tensors):
        raise SteerError(f"{file.path}: {layers} layers, but {len(file.tensors)} tensors")
    for key in file.keys(f"{name}."):
        rest = key.removeprefix(f"{name}.")
        if rest in _OFF:
            value = file.get(key, (bool, *_NUMBER))
            if value not in _OFF[rest]:
                raise SteerError(f"{file.path}: {key} {value} is not supported")
        elif rest not in _READ | _NO_MATTER:
            raise SteerError(
                f"{file.path}: key {short(key)} is not known, and may change the model"
            )


def _config_json(file: GgufFile, name: str) -> dict[str, Any]:
    """The content of the model's ``config.json``."""
    embedding, biased = file.tensors.get("token_embd.weight"), "blk.0.attn_q.bias" in file.tensors
    if embedding is None:
        raise SteerError(f"{file.path}: tensor token_embd.weight is missing")
    values = {key: file.get(f"{name}.{theirs}", kind) for key, theirs, kind in _SHAPE_KEYS}
    raw = {key: _plain(value) for key, value in values.items() if value is not None}
    for key in ("hidden_size", "num_attention_heads"):
        if raw.get(key, 1) < 1:
            raise SteerError(f"{file.path}: {key} must be at least 1, got {raw[key]}")
    _check_heads(file, name, raw)
    return raw | {
        "architectures": [ARCHITECTURES[name]],
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": biased,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "use_sliding_window": bool(raw.get("sliding_window")),
        "eos_token_id": end_ids(file),
        "rope_scaling": _rope_scaling(file, name),
    }


def _check_heads(file: GgufFile, name: str, raw: dict[str, Any]) -> None:
    """SteerError unless values are as wide as keys, and RoPE rotates whole heads."""
    width = raw.get("head_dim", raw["hidden_size"] // raw["num_attention_heads"])
    for key in ("attention.value_length", "rope.dimension_count"):
        size = file.get(f"{name}.{key}", int, width)
        if size != width:
            raise SteerError(
                f"{file.path}: {name}.{key} {size} is not supported: a head has {width}"
            )


def _rope_scaling(file: GgufFile, name: str) -> dict[str, Any] | None:
    """The scaling as llama.cpp reads it: the default type is linear, the default factor 1."""
    prefix = f"{name}.rope.scaling."

    def number(key: str) -> Any:
        return _plain(file.get(f"{prefix}{key}", _NUMBER))

    kind = file.get(f"{prefix}type", str, "linear")
    factor = number("factor") or _plain(file.get(f"{name}.rope.scale_linear", _NUMBER)) or 1.0
    extended, times = number("yarn_ext_factor"), number("attn_factor") or 1.0
    if (kind != "yarn" and times != 1) or extended not in (None, -1, int(kind == "yarn")):
        raise SteerError(f"{file.path}: rope.scaling of type {short(kind)} with YaRN's factors")
    if kind == "none" or (kind == "linear" and factor == 1):
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor}
    extra = {
        "original_max_position_embeddings": file.get(f"{prefix}original_context_length", int),
        "beta_fast": number("yarn_beta_fast"),
        "beta_slow": number("yarn_beta_slow"),
    }
    if times != 1:  # it multiplies YaRN's own factor
        extra["attention_factor"] = times * (0.1 * math.log(max(factor, 1.0)) + 1)
    return scaling | {key: value for key, value in extra.items() if value is not None}


def _plain(value: Any) -> Any:
    return shortest(value) if isinstance(value, float) else value


def shortest(value: Any) -> float:
    """The shortest decimal with the same fp32: 1e-06, not 9.999999974752427e-07."""
    return float(str(np.float32(value)))
