"""Gates of ``kernels.copy_blocks``."""

from __future__ import annotations

from kernels.aot.roofline import Roofline
from kernels.aot.variant import ModelShape, Variant
from kernels.copy_blocks import WARPS, WORDS, copy_kernel
from kernels.types.attention import KVLayout


def roofline(layout: KVLayout, pairs: int, itemsize: int = 2) -> Roofline:
    """Each block is read once and written once."""
    return Roofline(2 * pairs * layout.block_rows * layout.head_dim * itemsize, 0)


def variants(shape: ModelShape) -> list[Variant]:
    """One for every model: only sizes differ, and they are not compiled in."""
    integers = dict.fromkeys(("slots", "slab_words", "block_words"), "i32")
    return [
        Variant(
            op="copy_blocks",
            name="copy",
            kernel=copy_kernel,
            signature={"memory": "*i32", "pairs": "*i32", **integers},
            constants={"size": WORDS, "unit": 4},
            aligned=("memory", "pairs", "block_words"),
            warps=WARPS,
            elements=WORDS,
            budget=8,
        )
    ]
