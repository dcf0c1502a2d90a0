"""Exact sampling from logits as an exponential race: the same key draws the same token.

Each token x of a row gets a time E_x ~ Exp(1) from Philox 4x32-10, keyed by the row's key and
counter and by the token itself, never by the place in the batch. The first to arrive wins: the
token with the greatest z / T - log E, among those that the filters keep. It has the probability of
the softmax over these, and any backend can compute the same times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.types.sampling import DrawRows

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox_words(key: Tensor, counter: Tensor, count: int) -> Tensor:
    """Random words of 32 bits, int64 [rows, count].

    Word i of a row is word i % 4 of Philox 4x32-10 with the row's key and the counter
    (counter[0], counter[1], counter[2], i // 4).

    Args:
        key: int64 [rows], 64 bits each.
        counter: int64 [rows, 3], of which 32 bits count.
        count: words a row.
    """
    groups = torch.arange((count + 3) // 4, device=key.device)
    c = [part[:, None] & _MASK for part in counter.unbind(1)] + [groups[None]]
    k = [key[:, None] & _MASK, (key[:, None] >> 32) & _MASK]
    for _ in range(_ROUNDS):
        # A product wraps round as int64, which keeps its 64 bits.
        left, right = c[0] * _MULTIPLIERS[0], c[2] * _MULTIPLIERS[1]
        high_left, high_right = (left >> 32) & _MASK, (right >> 32) & _MASK
        c = [high_right ^ c[1] ^ k[0], right & _MASK, high_left ^ c[3] ^ k[1], left & _MASK]
        k = [(part + step) & _MASK for part, step in zip(k, _WEYL, strict=True)]
    return torch.stack(c, -1).flatten(1)[:, :count]


def race_times(words: Tensor) -> Tensor:
    """E = -log(1 - v) with v = (word + 1/2) / 2^32, fp64; exact for the small times that win."""
    return -torch.log1p(-(words.double() + 0.5) * 2.0**-32)


def sample(logits: Tensor, vocabulary: int, rows: DrawRows) -> Tensor:
    """One token id a row, int64 [rows].

    Temperature first, then the ``top_k`` most likely, then of those, renormalised, the smallest
    set that reaches ``top_p`` (the token that crosses it included), then those at least ``min_p``
    times as likely as the first. Ties are broken by the lower id. What is left races, in fp64. A
    temperature of 0 takes the argmax; a row that holds NaN, +inf or nothing but -inf gives 0.
    """
    z = logits[:, :vocabulary].double()
    greedy = rows.temperature <= 0
    top = z.amax(-1, keepdim=True)
    first = z.argmax(-1)
    if greedy.is_cuda or not bool(greedy.all()):  # on a card, looking would wait for it
        warm = torch.where(greedy, torch.ones_like(rows.temperature), rows.temperature)
        # The maximum goes first: a tiny temperature must not overflow.
        z = (z - top) / warm[:, None]
        if rows.filtered:
            z = z.masked_fill(~kept(z, rows), -torch.inf)
        times = race_times(philox_words(rows.key, rows.counter, vocabulary))
        first = torch.where(greedy, first, (z - times.log()).argmax(-1))
    return torch.where(top[:, 0].isfinite(), first, 0)


def kept(z: Tensor, rows: DrawRows) -> Tensor:
    """Which tokens the filters keep, bool; ``z``: logits over the temperature, fp64."""
    ordered, ids = z.sort(dim=-1, descending=True, stable=True)
    mass = ordered.softmax(-1)
    if rows.top_k is not None:
        rank = torch.arange(z.shape[1], device=z.device)
        top_k = torch.where(rows.top_k > 0, rows.top_k, z.shape[1])
        mass = mass.masked_fill(rank >= top_k[:, None], 0.0)
        mass = mass / mass.sum(-1, keepdim=True)
    if rows.top_p is not None:
        before = mass.cumsum(-1) - mass
        short = before < rows.top_p[:, None]
        short[:, 0] = True
        # A top_p of 1 is off: rounding in the sum must cut nothing.
        mass = torch.where(short | (rows.top_p[:, None] >= 1), mass, 0.0)
    if rows.min_p is not None:
        mass = mass.masked_fill(mass < rows.min_p[:, None] * mass[:, :1], 0.0)
    return torch.zeros_like(mass, dtype=torch.bool).scatter(1, ids, mass > 0)
