"""Each format of numbers in GGUF files, against vectors and loops worked out from its definition.

Source of the definitions: ggml's ``ggml-common.h`` (the structs) and ``ggml-quants.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest

from engine.gguf.formats import FORMATS, dequantised, format_of

from .gguf_files import SCALES, random_blocks


def half(value: float) -> bytes:
    return struct.pack("<e", value)


def of(data: bytes, name: str) -> list[float]:
    found = dequantised(np.frombuffer(data, np.uint8)[None], name)
    assert found.dtype == np.float32 and found.shape[0] == 1
    return found[0].tolist()


# Bytes of one block, and what stands in it by hand.
NIBBLES = bytes(n | (15 - n) << 4 for n in range(16))  # 0..15 low, 15..0 high
VECTORS: dict[str, tuple[bytes, list[float]]] = {
    "F32": (struct.pack("<3f", 1.5, -2.0, 3e-8), [1.5, -2.0, np.float32(3e-8).item()]),
    "F16": (half(1.5) + half(-0.25), [1.5, -0.25]),
    "BF16": (bytes([0xC0, 0x3F, 0x00, 0xC0]), [1.5, -2.0]),
    "Q8_0": (half(0.5) + bytes(range(32)), [q / 2 for q in range(32)]),
    "Q4_0": (half(2.0) + NIBBLES, [2.0 * (n - 8) for n in [*range(16), *range(15, -1, -1)]]),
    "Q4_1": (
        half(2.0) + half(-1.0) + NIBBLES,
        [2.0 * n - 1 for n in [*range(16), *range(15, -1, -1)]],
    ),
    # The fifth bit of the first and of the last number is set.
    "Q5_0": (
        half(1.0) + struct.pack("<I", 1 | 1 << 31) + NIBBLES,
        [0.0, *(n - 16 for n in [*range(1, 16), *range(15, 0, -1)]), 0.0],
    ),
    "Q5_1": (
        half(1.0) + half(0.5) + struct.pack("<I", 1 | 1 << 31) + NIBBLES,
        [16.5, *(n + 0.5 for n in [*range(1, 16), *range(15, 0, -1)]), 16.5],
    ),
    # Scale 3 and minimum 2 for each 16; two bits that count 0 1 2 3 in their four places.
    "Q2_K": (
        bytes([0x23] * 16) + bytes([0b11100100] * 64) + half(1.0) + half(0.5),
        [3.0 * (place % 128 // 32) - 1 for place in range(256)],
    ),
    # The high bit is set: nothing is taken off. Scales 33 - 32, in six bits.
    "Q3_K": (
        bytes([255] * 32)
        + bytes([0b11100100] * 64)
        + bytes([0x11] * 8 + [0b10101010] * 4)
        + half(2.0),
        [2.0 * (place % 128 // 32) for place in range(256)],
    ),
    # Scales 1 2 3 4 and 5 6 7 8, minima 1: the last four in nibbles.
    "Q4_K": (
        half(1.0)
        + half(0.25)
        + bytes([1, 2, 3, 4, 1, 1, 1, 1, 0x15, 0x16, 0x17, 0x18])
        + bytes([0x73] * 128),
        [(1 + place // 32) * (3.0 if place // 32 % 2 == 0 else 7.0) - 0.25 for place in range(256)],
    ),
    # The same with the fifth bits of the first 32 numbers set.
    "Q5_K": (
        half(1.0)
        + half(0.25)
        + bytes([1, 2, 3, 4, 1, 1, 1, 1, 0x15, 0x16, 0x17, 0x18])
        + bytes([1] * 32)
        + bytes([0x73] * 128),
        [
            (1 + place // 32) * ((19.0 if place < 32 else 3.0) if place // 32 % 2 == 0 else 7.0)
            - 0.25
            for place in range(256)
        ],
    ),
    # Low bits 1 and 2, high bits 0 1 2 3: less 32; scale 2.
    "Q6_K": (
        bytes([0x21] * 128) + bytes([0b11100100] * 64) + bytes([2] * 16) + half(0.5),
        [
            float((1 if place % 128 < 64 else 2) + 16 * (place % 128 // 32) - 32)
            for place in range(256)
        ],
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_vector_by_hand(name: str):
    data, expected = VECTORS[name]
    assert of(data, name) == expected


def bits(value: int, first: int, count: int) -> int:
    return value >> first & ((1 << count) - 1)


def scale_and_minimum(packed: np.ndarray, index: int) -> tuple[int, int]:
    """Of Q4_K and Q5_K: 6 bits each, the last four with their two high bits elsewhere."""
    p = [int(byte) for byte in packed]
    if index < 4:
        return bits(p[index], 0, 6), bits(p[index + 4], 0, 6)
    low, high = p[index + 4], (p[index - 4], p[index])
    return (bits(low, 0, 4) | bits(high[0], 6, 2) << 4, bits(low, 4, 4) | bits(high[1], 6, 2) << 4)


def q2_k(b: np.ndarray, d: list[float], place: int) -> float:
    scale = int(b[place // 16])
    quarter, within = place // 128, place % 128
    q = bits(int(b[16 + quarter * 32 + within % 32]), 2 * (within // 32), 2)
    return d[0] * bits(scale, 0, 4) * q - d[1] * bits(scale, 4, 4)


def q3_k(b: np.ndarray, d: list[float], place: int) -> float:
    packed, index = [int(byte) for byte in b[96:108]], place // 16
    low = bits(packed[index % 8], 4 * (index // 8), 4)
    scale = (low | bits(packed[8 + index % 4], 2 * (index // 4), 2) << 4) - 32
    half_, within = place // 128, place % 128
    q = bits(int(b[32 + half_ * 32 + within % 32]), 2 * (within // 32), 2)
    high = bits(int(b[within % 32]), half_ * 4 + within // 32, 1)
    return d[0] * scale * (q - (0 if high else 4))


def q4_k(b: np.ndarray, d: list[float], place: int) -> float:
    group = place // 32
    scale, minimum = scale_and_minimum(b[4:16], group)
    q = bits(int(b[16 + group // 2 * 32 + place % 32]), 4 * (group % 2), 4)
    return d[0] * scale * q - d[1] * minimum


def q5_k(b: np.ndarray, d: list[float], place: int) -> float:
    group = place // 32
    scale, minimum = scale_and_minimum(b[4:16], group)
    q = bits(int(b[48 + group // 2 * 32 + place % 32]), 4 * (group % 2), 4)
    q += 16 * bits(int(b[16 + place % 32]), group, 1)
    return d[0] * scale * q - d[1] * minimum


def q6_k(b: np.ndarray, d: list[float], place: int) -> float:
    half_, within = place // 128, place % 128
    low = bits(int(b[half_ * 64 + within % 64]), 4 * (within // 64), 4)
    high = bits(int(b[128 + half_ * 32 + within % 32]), 2 * (within // 32), 2)
    scale = int(b[192 + place // 16].view(np.int8))
    return d[0] * scale * ((low | high << 4) - 32)


LOOPS: dict[str, Callable[[np.ndarray, list[float], int], float]] = {
    "Q2_K": q2_k,
    "Q3_K": q3_k,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
}


@pytest.mark.parametrize("name", LOOPS)
def test_random_blocks_as_the_definition_says(name: str):
    """All the bits of scales and numbers take part."""
    for block in random_blocks(name, 8, seed=3):
        d = [float(block[place : place + 2].view(np.float16)[0]) for place in SCALES[name]]
        expected = [LOOPS[name](block, d, place) for place in range(256)]
        np.testing.assert_allclose(
            dequantised(block[None], name)[0], expected, rtol=2e-6, atol=1e-6
        )


def test_sizes_and_names():
    assert {format_of(code).name for code in (0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 30)} == {
        *FORMATS
    }
    assert format_of(12).bytes((3, 512)) == 3 * 2 * 144
    with pytest.raises(ValueError, match=r"rows of 300 are not made of Q4_K's 256"):
        format_of(12).bytes((3, 300))
    with pytest.raises(ValueError, match=r"its format IQ4_NL is not supported; supported: F32"):
        format_of(20)
    with pytest.raises(ValueError, match="its format 99 is unknown"):
        format_of(99)
