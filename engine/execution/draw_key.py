"""The key of a request's random draws."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def draw_key(seed: int, prompt: Sequence[int]) -> int:
    """64 bits that stand for a seed and a prompt's ids.

    The prompt is a part of it, so that requests with one explicit seed share no random numbers.
    """
    ids = np.asarray(prompt, "<i8").tobytes()
    found = hashlib.blake2b(seed.to_bytes(8, "little") + ids, digest_size=8)
    return int.from_bytes(found.digest(), "little")
