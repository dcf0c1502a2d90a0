"""A prompt that is given as token ids, checked once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from operator import index

import numpy as np

from engine.errors import SteerError

_SHOWN = 60  # characters of a wrong prompt in an error


def token_ids(prompt: object) -> list[int]:
    """The ids of a prompt that is no text. SteerError if it is no sequence of whole numbers."""
    if isinstance(prompt, np.ndarray) and prompt.ndim == 1 and prompt.dtype.kind in "iu":
        numbers: list[int] = prompt.tolist()
        return numbers
    try:
        if isinstance(prompt, bytes | bytearray | Mapping | Set) or not isinstance(
            prompt, Iterable
        ):
            raise TypeError
        ids = list(prompt)
        if bool in set(map(type, ids)):
            raise TypeError
        return [*map(index, ids)]
    except TypeError:
        shown = repr(prompt)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        raise SteerError(f"a prompt must be text or token ids, got {shown}", "prompt") from None


def check_range(ids: Sequence[int], size: int) -> None:
    """SteerError for the first id that is not in 0..``size`` - 1."""
    numbers = np.asarray(ids)
    if ids and (numbers.min() < 0 or numbers.max() >= size):
        wrong = next(i for i in ids if not 0 <= i < size)
        raise SteerError(f"token id {wrong} is not in 0..{size - 1}", "prompt")
