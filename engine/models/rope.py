"""Rotary tables of a model, scaled according to its config.json. All in fp32."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.config import ModelConfig, RopeScaling


def rope_table(config: ModelConfig, length: int) -> Tensor:
    """Cosines and sines of positions 0..length-1: fp32 [2, length, head_dim], halves repeated."""
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequencies(config)
    angle = torch.cat([angle, angle], -1)
    return torch.stack([angle.cos(), angle.sin()]) * config.rope.attention_factor


def frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each rotated pair: fp32 [head_dim / 2]."""
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    plain = 1 / config.rope_theta**steps
    if config.rope_factors:
        plain = plain / torch.tensor(config.rope_factors, dtype=torch.float32)
    scaling = config.rope
    if scaling.kind == "default":
        return plain
    stretched = plain / scaling.factor
    if scaling.kind == "linear":
        return stretched
    if scaling.kind == "llama3":
        turns = scaling.original_max_position * plain / (2 * math.pi)
        kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    else:
        kept = 1 - _yarn_ramp(config, scaling)
    return stretched * (1 - kept) + plain * kept


def _yarn_ramp(config: ModelConfig, scaling: RopeScaling) -> Tensor:
    """0 for the pairs that turn fast, 1 for the slow ones: [head_dim / 2]."""

    def pair_of(turns: float) -> float:
        """The dimension that makes ``turns`` full turns over the original context."""
        ratio = scaling.original_max_position / (turns * 2 * math.pi)
        return config.head_dim * math.log(ratio) / (2 * math.log(config.rope_theta))

    first, last = pair_of(scaling.high), pair_of(scaling.low)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, config.head_dim - 1)
    width = last - first or 0.001
    index = torch.arange(config.head_dim // 2, dtype=torch.float32)
    return ((index - first) / width).clamp(0, 1)
