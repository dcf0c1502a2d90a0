"""Shared fixtures. One thread: two of them spin against each other on a busy small machine."""

from __future__ import annotations

import gc
import os
from importlib.util import find_spec

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if find_spec("torch"):  # the core's tests run without
    import torch

    if not torch.cuda.is_available():  # read where kernels are decorated
        os.environ.setdefault("TRITON_INTERPRET", "1")
    torch.set_num_threads(1)

    if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
        from tests.interpreter import patch_once, skip_where_it_fails

        skip_where_it_fails()
        patch_once()


def pytest_collection_finish() -> None:
    """Modules and tests stay until the end: the collector need not walk them again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
