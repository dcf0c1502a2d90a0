"""Models that are functions of the whole text so far, and a shadow of the arena.

A token that is wrong, missing or written twice changes everything after it. The shadow holds, for
every byte of the arena, what the last write there was.
"""

from __future__ import annotations

from .kinds import LARGE, SMALL

TOKEN_BYTES = [b"a", b"b", b"c", b"\n", b"\n\n", b".\n\n", b"\n\n\n", b""]
STOP_ID = 7
MARKER = [0, 1]  # ends thinking
BLOCK_TOKENS = 4
CONTEXT = 40
OPERATIONS = 8000  # of a seed

# Slots of a slab, bytes of a token, bytes of a slab. The ratio of the blocks is not integral: those
# of the two models end at different bytes.
GEOMETRIES = [((9, 1), (7, 64), 256), ((7, 2), (2, 7), 60)]


def digest(tokens: list[int]) -> list[int]:
    """A hash of each prefix; entry n is that of the first n tokens."""
    hashes = [1]
    for token in tokens:
        hashes.append(hash((hashes[-1], token)))
    return hashes


def virtual_model(model: int, prefix: int) -> int:
    """The token that a model writes after a prefix: text, delimiters, and now and then a stop."""
    draw = hash((prefix, model, 5)) % 40
    return STOP_ID if draw == 0 else draw % 7


def virtual_guess(prefix: int, place: int) -> int:
    """The small model's guess at the large one's token: right in two of three; else any token, now
    and then none at all. ``place``: what else it depends on, as a guess may be drawn again."""
    draw = hash((prefix, place, 11)) % 300
    if draw < 200:
        return virtual_model(LARGE, prefix)
    return -1 if draw == 299 else draw % 8


class Arena:
    """What the last write left in each byte."""

    def __init__(self, slabs: int, slots: tuple[int, int], token: tuple[int, int], slab: int):
        self.slots, self.token_bytes, self.slab_bytes = slots, token, slab
        for model in (SMALL, LARGE):
            assert slots[model] == slab // (token[model] * BLOCK_TOKENS)
        self.bytes = [0] * (slabs * slab)

    def range(self, model: int, slot: int) -> slice:
        """The bytes of a KV row."""
        block, offset = divmod(slot, BLOCK_TOKENS)
        slab, place = divmod(block, self.slots[model])
        size = self.token_bytes[model]
        first = slab * self.slab_bytes + (place * BLOCK_TOKENS + offset) * size
        assert first + size <= (slab + 1) * self.slab_bytes
        return slice(first, first + size)

    def write(self, model: int, slot: int, content: int) -> None:
        self.bytes[self.range(model, slot)] = [content] * self.token_bytes[model]

    def holds(self, model: int, slot: int, content: int) -> bool:
        return self.bytes[self.range(model, slot)] == [content] * self.token_bytes[model]
