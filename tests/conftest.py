"""Shared fixtures. One thread: two of them spin against each other on a busy small machine."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

if not torch.cuda.is_available():  # read where kernels are decorated
    os.environ.setdefault("TRITON_INTERPRET", "1")
torch.set_num_threads(1)
