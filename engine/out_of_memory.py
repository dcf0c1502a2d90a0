"""Which errors say that memory ran out: PyTorch has a type for but one of them."""

from __future__ import annotations

import torch

# In small letters. CUDA's own and Triton's, those of its libraries, and PyTorch's on the host.
_PHRASES = ("out of memory", "_alloc_failed", "can't allocate memory")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory of a device or of the host was short; the same may succeed later.

    ``torch.OutOfMemoryError`` comes from PyTorch's allocator alone. What a library allocates
    (``CUBLAS_STATUS_ALLOC_FAILED``), a kernel that Triton loads, a graph and pinned memory fail
    with a plain RuntimeError.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in _PHRASES)
