"""Argument checks of the launchers: one clear error that names the argument, before any launch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_tensor(
    name: str,
    tensor: Tensor,
    shape: Sequence[int | None],
    dtypes: Sequence[torch.dtype],
    like: Tensor | None = None,
    contiguous: bool = True,
) -> None:
    """ValueError unless ``tensor`` is what a kernel expects.

    Args:
        name: of the argument.
        shape: expected sizes; None accepts any.
        dtypes: accepted.
        like: a tensor on whose device it must be.
        contiguous: whether all of it must be; otherwise only its last dimension.
    """
    wanted = ", ".join("*" if size is None else str(size) for size in shape)
    sizes = tuple(tensor.shape)
    if len(sizes) != len(shape) or any(
        w is not None and w != s for w, s in zip(shape, sizes, strict=True)
    ):
        raise ValueError(f"{name} must have shape [{wanted}], got {list(sizes)}")
    if tensor.dtype not in dtypes:
        names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise ValueError(f"{name} must be {names}, got {str(tensor.dtype).removeprefix('torch.')}")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {tensor.device}")
    if contiguous and not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {list(tensor.stride())}")
    if not contiguous and tensor.ndim and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(
            f"{name} must have stride 1 in its last dimension, got {tensor.stride(-1)}"
        )


def check_choice(name: str, value: int, known: Sequence[int]) -> None:
    """ValueError unless a number is one that the kernel was built for."""
    if value not in known:
        expected = ", ".join(map(str, known))
        raise ValueError(f"{name} must be one of {expected}, got {value}")


def interpreted(kernel: Any) -> bool:
    """Whether Triton runs a kernel in its interpreter, on the CPU."""
    import triton  # not to be paid for by who only has arguments checked

    return not isinstance(kernel, triton.JITFunction)


def check_device(name: str, tensor: Tensor, kernel: Any) -> None:
    """ValueError unless a kernel can be launched on a tensor."""
    if not (tensor.is_cuda or interpreted(kernel)):
        raise ValueError(f"{name} must be on a CUDA device, got {tensor.device}")


def check_eps(eps: float) -> None:
    """ValueError unless it can be added to a mean square."""
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be 0 or more, got {eps}")
