"""Recognises out-of-memory errors; PyTorch has an exception type for only one kind of them."""

from __future__ import annotations

import torch

# In lower case: messages of CUDA and Triton, of CUDA's libraries, of PyTorch's host allocator.
_PHRASES = ("out of memory", "_alloc_failed", "can't allocate memory")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that a device or the host ran out of memory; a retry may succeed.

    ``torch.OutOfMemoryError`` comes from PyTorch's allocator only. Libraries
    (``CUBLAS_STATUS_ALLOC_FAILED``), kernels that Triton loads, graphs and pinned memory fail with
    a plain RuntimeError.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in _PHRASES)
