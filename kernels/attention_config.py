"""How attention is cut: tiles, chunks of keys, and what the host says of a batch.

Plain tables, no timing at run time: what runs depends on the model and on the size of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

SHORT = 64  # queries: longer spans fill the card without splitting their keys
_ENDLESS = 2**30
_TYPICAL_SEQUENCES = 16  # of a lane


@dataclass(frozen=True)
class Split:
    """``chunk`` tokens a split at least, ``most`` splits a sequence at most; powers of two."""

    chunk: int
    most: int


@dataclass(frozen=True)
class Splits:
    """Of decodes and of short spans."""

    decode: Split
    short: Split

    @classmethod
    def choose(cls, sequences: int, kv_heads: int) -> Splits:
        """By the size of the batch: its capacity, not what is in it.

        One sequence must be cut fine to fill a card; many fill it by themselves, and each split
        costs ``4 * head_dim`` bytes of partial result per query and head, written and read. Short
        spans write ``SHORT`` times more of them, hence longer chunks.
        """
        work = sequences * kv_heads
        for most, splits in _TABLE:
            if work <= most:
                return splits
        return _MANY

    @classmethod
    def of_lane(cls, sequences: int, kv_heads: int) -> Splits:
        """Chosen once for a lane of at most so many sequences: not by who else is there."""
        return cls.choose(min(sequences, _TYPICAL_SEQUENCES), kv_heads)


_TABLE = (
    (4, Splits(Split(64, 64), Split(128, 32))),
    (8, Splits(Split(64, 64), Split(256, 32))),
    (32, Splits(Split(128, 32), Split(256, 16))),
    (128, Splits(Split(256, 32), Split(512, 8))),
)
_MANY = Splits(Split(512, 16), Split(1024, 2))


@dataclass(frozen=True)
class Work:
    """What the host knows of a batch: upper bounds, so that one graph serves many batches.

    decodes, shorts, longs: sequences with 1, 2 to ``SHORT``, and more queries.
    short_rows, long_rows: their queries.
    context: keys of any sequence.
    """

    decodes: int
    shorts: int
    short_rows: int
    longs: int
    long_rows: int
    context: int

    @classmethod
    def of(cls, starts: Sequence[int], contexts: Sequence[int]) -> Work:
        """Exactly that of a batch."""
        spans = [b - a for a, b in pairwise(starts)]
        if len(spans) != len(contexts):
            raise ValueError(f"contexts must have {len(spans)} entries, got {len(contexts)}")
        for span, context in zip(spans, contexts, strict=True):
            if not 0 <= span <= context:
                raise ValueError(f"contexts must cover their spans, got {context} of {span} rows")
        return cls.counted(np.array(spans, np.int32), np.array(contexts, np.int32))

    @classmethod
    def within(cls, sequences: int, span_rows: int, context: int) -> Work:
        """Of any batch of at most so many sequences, the spans among them of ``span_rows``."""
        return cls(
            sequences,
            min(sequences, span_rows // 2),
            span_rows,
            min(sequences, span_rows // (SHORT + 1)),
            span_rows,
            context,
        )

    @classmethod
    def counted(cls, spans: npt.NDArray[np.int32], contexts: npt.NDArray[np.int32]) -> Work:
        """Likewise, of a batch that is known to be sound."""
        short, long = (spans > 1) & (spans <= SHORT), spans > SHORT
        return cls(
            int((spans == 1).sum()),
            int(short.sum()),
            int(spans[short].sum()),
            int(long.sum()),
            int(spans[long].sum()),
            int(contexts.max(initial=0)),
        )


@dataclass(frozen=True)
class Tile:
    """Packed rows and keys of one step of a program."""

    rows: int
    keys: int
    warps: int
    stages: int


# fp32 is for tests. It takes twice the shared memory a step and more registers, as each product is
# made of three: with 32 rows and more, accumulators of head size 128 would spill.
TILES_16BIT = {
    "decode": Tile(16, 64, 4, 3),
    "short": Tile(64, 64, 4, 3),
    "long": Tile(128, 64, 8, 3),
}
TILES_32BIT = {
    "decode": Tile(16, 32, 4, 2),
    "short": Tile(16, 32, 8, 2),
    "long": Tile(16, 32, 8, 2),
}


def query_blocks(bound: int, rows: int, block_q: int) -> int:
    """At most so many blocks of ``block_q`` have ``rows`` queries of ``bound`` sequences."""
    return bound + max(0, rows - bound) // block_q


def shared_constants(
    kind: str, group: int, head_dim: int, sequences: int, tile: Tile
) -> dict[str, int]:
    """Constants that all kernels of a kind share."""
    low, high = {"decode": (1, 1), "short": (2, SHORT), "long": (SHORT + 1, _ENDLESS)}[kind]
    return {
        "group": group,
        "head_dim": head_dim,
        "block_q": 1 if high == 1 else tile.rows // group,
        "low": low,
        "high": high,
        "lanes": 1 if high == 1 else max(32, 1 << (sequences - 1).bit_length()),
    }


def check_splits(splits: Splits) -> None:
    """ValueError unless the kernels can cut keys so."""
    for name, split in (("decode", splits.decode), ("short", splits.short)):
        if split.chunk < 16 or split.chunk & (split.chunk - 1):
            raise ValueError(
                f"splits.{name}.chunk must be a power of two, at least 16, got {split.chunk}"
            )
        if split.most < 1 or split.most & (split.most - 1):
            raise ValueError(f"splits.{name}.most must be a power of two, got {split.most}")


def split_attention_bytes(
    rows: int, sequences: int, heads: int, kv_heads: int, head_dim: int, element_bytes: int
) -> int:
    """Bytes of the partial results, fp32, of one layer's attention, whatever the spans are.

    Args:
        rows: of a tick, spread over at most so many ``sequences``.
        heads: query heads, shared by ``kv_heads``.
        element_bytes: of the query's dtype.
    """
    splits = Splits.of_lane(sequences, kv_heads)
    tile = (TILES_16BIT if element_bytes == 2 else TILES_32BIT)["short"]
    block = max(1, tile.rows // (heads // kv_heads))
    short = block * query_blocks(min(sequences, rows // 2), rows, block)
    most = max(sequences * splits.decode.most, short * splits.short.most)
    return 4 * most * heads * (head_dim + 2)
