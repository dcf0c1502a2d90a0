"""Norm, rotary embedding and gated activation of the decoder, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / rms(x) * weight`` over the last dimension; statistics in fp32, result in x's dtype.

    Args:
        x: [..., hidden].
        weight: [hidden].
        eps: added to the mean square.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add ``residual`` to ``x`` in place and return the norm of the sum."""
    return rms_norm(x.add_(residual), weight, eps)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """``x @ weight^T * scale + bias`` in x's dtype.

    Args:
        x: [rows, in].
        weight: [out, in] of x's dtype, or of a narrower one with ``scale``.
        bias: [out].
        scale: [out] fp32, of the weight's rows.
    """
    if scale is None:
        return torch.nn.functional.linear(x, weight, bias)
    y = torch.nn.functional.linear(x, weight.to(x.dtype)).float() * scale
    return (y if bias is None else y + bias.float()).to(x.dtype)


def rope_tables(
    length: int, head_dim: int, theta: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Cosines and sines of positions 0..length-1: [2, length, head_dim], halves repeated."""
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
    angle = torch.cat([angle, angle], -1)
    return torch.stack([angle.cos(), angle.sin()]).to(dtype)


def apply_rope(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate pairs (i, i + head_dim / 2), the layout of Qwen2 and Llama checkpoints.

    Args:
        x: [rows, heads, head_dim]; the result has its type.
        cosine: [rows, 1, head_dim], of each row's position; sine likewise.
    """
    first, second = x.chunk(2, -1)
    return (x * cosine + torch.cat([-second, first], -1) * sine).to(x.dtype)


def silu_mul(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` where gate and up are the halves of the last dimension."""
    gate, up = gate_up.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up
