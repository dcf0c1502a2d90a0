"""Shared fixtures. One thread: two of them spin against each other on a busy small machine."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

torch.set_num_threads(1)
