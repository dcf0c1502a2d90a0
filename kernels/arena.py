"""What the launchers of kernels on the arena have in common."""

from __future__ import annotations

import torch

from kernels.checks import check_choice
from kernels.types.attention import KVLayout

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
PAGES = (4, 8, 16, 32, 64, 128)


def check_layout(layout: KVLayout, layer: int = 0) -> None:
    """ValueError unless pages are of a known size, blocks fit their slabs and the layer exists."""
    check_choice("layout.block_tokens", layout.block_tokens, PAGES)
    if layout.slots < 1 or layout.slots * layout.block_rows > layout.slab_rows:
        raise ValueError(
            f"layout.slab_rows must hold layout.slots = {layout.slots} blocks of "
            f"{layout.block_rows} rows, got {layout.slab_rows}"
        )
    if not 0 <= layer < layout.layers:
        raise ValueError(f"layer must be in 0..{layout.layers - 1}, got {layer}")
