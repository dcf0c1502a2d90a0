"""Kernels without a GPU run in Triton's interpreter."""

from __future__ import annotations

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from tests.interpreter import patch_once

    patch_once()
