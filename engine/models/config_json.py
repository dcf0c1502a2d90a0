"""Reads the family, the shape and the rotary scaling from a Hugging Face ``config.json``."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.config import ModelConfig, Quantisation, RopeScaling
from engine.errors import SteerError
from engine.models.quantisation import parse_quantisation

ARCHITECTURES = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM")
ROPE_KINDS = ("default", "linear", "llama3", "yarn")
# Far above any published model: a larger value is a mistake, and would hang or fill the memory.
_LARGEST = {
    "num_hidden_layers": 2**12,
    "num_attention_heads": 2**14,
    "num_key_value_heads": 2**14,
    "head_dim": 2**14,
    "hidden_size": 2**20,
    "intermediate_size": 2**24,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**24,
}


def parse_config(raw: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The shape of the model. SteerError on what is not supported, naming ``where``."""
    fields = _Fields(raw, where)
    architecture = _architecture(raw, where)
    activation = raw.get("hidden_act") or "silu"
    if activation != "silu":
        raise SteerError(f"{where}: hidden_act {activation!r} is not supported: silu is")
    heads = fields.integer("num_attention_heads")
    hidden = fields.integer("hidden_size")
    rope, theta = _rope(fields)
    width = 128 if architecture == "Qwen3ForCausalLM" else max(1, hidden // heads)
    return ModelConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=fields.integer("head_dim", width),
        max_position=_max_position(fields, rope, architecture),
        rope_theta=theta,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        tied=fields.boolean("tie_word_embeddings", False),
        eos_ids=fields.token_ids("eos_token_id"),
        rope=rope,
        quantisation=_quantisation(fields),
        **_family(fields, architecture),
    )


def _architecture(raw: Mapping[str, Any], where: str) -> str:
    architectures = raw.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    if first not in ARCHITECTURES:
        raise SteerError(
            f"{where}: architecture {first or 'none named'} is not supported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    return str(first)


def _quantisation(fields: _Fields) -> Quantisation | None:
    inner = fields.inner(("quantization_config",))
    return parse_quantisation(inner.raw, fields.where) if inner.raw else None


def _family(fields: _Fields, architecture: str) -> dict[str, Any]:
    """The fields in which families differ: biases and norms of queries and keys."""
    if architecture == "Qwen2ForCausalLM":
        return {"qkv_bias": True}
    if architecture == "MistralForCausalLM":
        return {"qkv_bias": False}
    bias = fields.boolean("attention_bias", False)
    if architecture == "Qwen3ForCausalLM":
        return {"qkv_bias": bias, "output_bias": bias, "qk_norm": True}
    return {"qkv_bias": bias, "output_bias": bias, "mlp_bias": fields.boolean("mlp_bias", False)}


def _max_position(fields: _Fields, rope: RopeScaling, architecture: str) -> int:
    limit = fields.integer("max_position_embeddings", 32768)
    if rope.kind == "yarn":
        stretched = rope.factor * rope.original_max_position
        if stretched > (largest := _LARGEST["max_position_embeddings"]):
            raise SteerError(
                f"{fields.where}: yarn stretches the context to {stretched:.3g} tokens, "
                f"more than {largest}"
            )
        limit = max(limit, int(stretched))
    slides = fields.boolean("use_sliding_window", architecture == "MistralForCausalLM")
    # Without the key transformers takes 4096; null switches the window off.
    windowed = slides and fields.raw.get("sliding_window", 4096) is not None
    return min(limit, fields.integer("sliding_window", 4096)) if windowed else limit


def _rope(fields: _Fields) -> tuple[RopeScaling, float]:
    """The scaling, and the base of the frequencies.

    What stands in rope_scaling or rope_parameters takes precedence over the same key beside them,
    and rope_scaling over rope_parameters, as in transformers.
    """
    inner = fields.inner(("rope_scaling", "rope_parameters"))
    layered = [name for name, value in inner.raw.items() if isinstance(value, Mapping)]
    if layered:
        raise SteerError(
            f"{fields.where}: rope parameters by layer ({layered[0]}) are not supported"
        )
    theta = inner.number("rope_theta", fields.number("rope_theta", 10000.0))
    if theta <= 1:
        raise SteerError(f"{fields.where}: rope_theta must be above 1, got {theta:g}")
    kind = inner.raw.get("rope_type") or inner.raw.get("type") or "default"
    if kind not in ROPE_KINDS:
        raise SteerError(
            f"{fields.where}: rope type {kind!r} is not supported; "
            f"supported: {', '.join(ROPE_KINDS)}"
        )
    partial = fields.number("partial_rotary_factor", 1.0)
    if inner.number("partial_rotary_factor", partial) != 1:
        raise SteerError(f"{fields.where}: partial_rotary_factor other than 1 is not supported")
    if kind == "default":
        return RopeScaling(), theta
    if kind == "linear":
        return RopeScaling(kind, inner.number("factor")), theta
    original = inner.integer(
        "original_max_position_embeddings", fields.integer("max_position_embeddings", 32768)
    )
    if kind == "llama3":
        low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
        if low >= high:
            raise SteerError(f"{fields.where}: low_freq_factor must be below high_freq_factor")
        return RopeScaling(kind, inner.number("factor"), original, low, high), theta
    return _yarn(fields, inner, original), theta


def _yarn(fields: _Fields, inner: _Fields, original: int) -> RopeScaling:
    """Peng et al., YaRN (arXiv 2309.00071), with the extra fields that checkpoints use."""
    limit = fields.integer("max_position_embeddings", 32768)
    factor = inner.number("factor", limit / original)
    scales = [inner.raw.get(name) for name in ("mscale", "mscale_all_dim")]
    attention = _mscale(factor)
    if all(scales):
        attention = _mscale(factor, inner.number("mscale"))
        attention /= _mscale(factor, inner.number("mscale_all_dim"))
    return RopeScaling(
        "yarn",
        factor,
        original,
        low=inner.number("beta_slow", 1.0),
        high=inner.number("beta_fast", 32.0),
        attention_factor=inner.number("attention_factor", attention),
        truncate=inner.boolean("truncate", True),
    )


def _mscale(factor: float, weight: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


@dataclass(frozen=True)
class _Fields:
    """Typed access to a config.json; errors name the file and the field."""

    raw: Mapping[str, Any]
    where: str

    def _wrong(self, name: str, expected: str) -> SteerError:
        value = self.raw.get(name)
        if value is None:
            return SteerError(f"{self.where}: {name!r} is missing")
        return SteerError(f"{self.where}: {name} must be {expected}, found {value!r}")

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.raw.get(name)
        value = default if value is None else value
        largest = _LARGEST.get(name, 2**31 - 1)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
            raise self._wrong(name, f"a whole number from 1 to {largest}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(name, "a number above 0")
        if not 0 < value <= sys.float_info.max:
            raise self._wrong(name, "a number above 0")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        value = self.raw.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise self._wrong(name, "a token id or a list of them")
        return tuple(ids)

    def inner(self, names: tuple[str, ...]) -> _Fields:
        """The first object under one of ``names``; an empty one if there is none."""
        for name in names:
            value = self.raw.get(name)
            if value and not isinstance(value, Mapping):
                raise self._wrong(name, "an object")
            if value:
                return _Fields(value, self.where)
        return _Fields({}, self.where)
