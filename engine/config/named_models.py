"""Shapes of published checkpoints by name, as in the ``config.json`` of each.

They give prices for models that are not on disk, and shapes for dummy weights. A checkpoint on
disk is read with its own config.json. docs/library.md lists the repositories of these shapes.
"""

from __future__ import annotations

from engine.config import ModelConfig, RopeScaling


def _qwen25(
    hidden: int, layers: int, heads: int, kv_heads: int, ff: int, vocab: int, tied: bool = False
) -> ModelConfig:
    return ModelConfig(vocab, hidden, ff, layers, heads, kv_heads, hidden // heads, tied=tied)


def _qwen3(hidden: int, layers: int, heads: int, ff: int, tied: bool = False) -> ModelConfig:
    return ModelConfig(
        151936,
        hidden,
        ff,
        layers,
        heads,
        8,
        128,
        max_position=40960,
        tied=tied,
        qkv_bias=False,
        qk_norm=True,
    )


def _llama3(
    hidden: int, layers: int, heads: int, head_dim: int, ff: int, factor: float, tied: bool = False
) -> ModelConfig:
    """Llama 3.1 and later: stretched from 8,192 tokens to 131,072."""
    return ModelConfig(
        128256,
        hidden,
        ff,
        layers,
        heads,
        8,
        head_dim,
        max_position=131072,
        rope_theta=500000.0,
        norm_eps=1e-5,
        tied=tied,
        qkv_bias=False,
        rope=RopeScaling("llama3", factor, 8192, low=1.0, high=4.0),
    )


NAMED_MODELS: dict[str, ModelConfig] = {
    # Qwen/Qwen2.5-0.5B-Instruct and so on: the base models have the same shapes.
    "qwen-0.5b": _qwen25(896, 24, 14, 2, 4864, 151936, tied=True),
    "qwen-1.5b": _qwen25(1536, 28, 12, 2, 8960, 151936, tied=True),
    "qwen-3b": _qwen25(2048, 36, 16, 2, 11008, 151936, tied=True),
    "qwen-7b": _qwen25(3584, 28, 28, 4, 18944, 152064),
    "qwen-14b": _qwen25(5120, 48, 40, 8, 13824, 152064),
    "qwen-32b": _qwen25(5120, 64, 40, 8, 27648, 152064),
    "qwen-72b": _qwen25(8192, 80, 64, 8, 29568, 152064),
    # Qwen/Qwen2.5-Coder-0.5B-Instruct, -1.5B-Instruct
    "qwen-coder-0.5b": _qwen25(896, 24, 14, 2, 4864, 151936, tied=True),
    "qwen-coder-1.5b": _qwen25(1536, 28, 12, 2, 8960, 151936, tied=True),
    # Qwen/Qwen3-0.6B, -1.7B, -8B, -32B
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, tied=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 6144, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 12288),
    "qwen3-32b": _qwen3(5120, 64, 64, 25600),
    # meta-llama/Llama-3.2-1B-Instruct; Llama-3.1-8B-Instruct; Llama-3.1-70B-Instruct and
    # Llama-3.3-70B-Instruct, which have the same shape
    "llama-1b": _llama3(2048, 16, 32, 64, 8192, 32.0, tied=True),
    "llama-8b": _llama3(4096, 32, 32, 128, 14336, 8.0),
    "llama-70b": _llama3(8192, 80, 64, 128, 28672, 8.0),
}
