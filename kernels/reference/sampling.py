"""Exact sampling from logits with keyed random numbers: the same key draws the same token.

A draw is keyed by (seed, sample, position, model, attempt), never by its place in the batch, and
uses Philox 4x32-10, so that any backend can reproduce the bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kernels.types.sampling import SamplingRows

_MASK = np.uint64(0xFFFFFFFF)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_ROUNDS = 10


def philox_uniform(seed: npt.NDArray[np.uint64], counter: npt.NDArray[np.uint64]) -> Tensor:
    """53-bit uniforms in [0, 1), fp64 [rows].

    Args:
        seed: [rows] 64-bit keys.
        counter: [rows, 4], each in 0..2**32-1.
    """
    key = [seed & _MASK, seed >> np.uint64(32)]
    c = [counter[:, i] & _MASK for i in range(4)]
    for _ in range(_ROUNDS):
        left, right = c[0] * _MULTIPLIERS[0], c[2] * _MULTIPLIERS[1]
        high_left, high_right = left >> np.uint64(32), right >> np.uint64(32)
        c = [high_right ^ c[1] ^ key[0], right & _MASK, high_left ^ c[3] ^ key[1], left & _MASK]
        key = [(k + w) & _MASK for k, w in zip(key, _WEYL, strict=True)]
    bits = ((c[0] << np.uint64(21)) ^ (c[1] >> np.uint64(11))) & np.uint64(2**53 - 1)
    return torch.from_numpy(bits.astype(np.float64) * 2.0**-53)


def sample(logits: Tensor, vocabulary: int, rows: SamplingRows) -> Tensor:
    """One token id a row, int64 [rows].

    Temperature first, then the ``top_k`` most likely, then of those, renormalised, the smallest
    set that reaches ``top_p`` (the token that crosses it included), then those at least ``min_p``
    times as likely as the first. Ties are broken by the lower id. A row's draw is the inverse of
    the cumulative distribution over the kept tokens in order of likelihood, in fp64.
    """
    z = logits[:, :vocabulary].double()
    greedy = rows.temperature <= 0
    if not greedy.is_cuda and bool(greedy.all()):  # on a card, looking would wait for it
        return z.argmax(-1)
    warm = torch.where(greedy, torch.ones_like(rows.temperature), rows.temperature)
    # The maximum goes first: a tiny temperature must not overflow.
    z = (z - z.amax(-1, keepdim=True)) / warm[:, None]
    ordered, ids = z.sort(dim=-1, descending=True, stable=True)
    mass = ordered.softmax(-1)
    rank = torch.arange(vocabulary, device=z.device)
    top_k = torch.where(rows.top_k > 0, rows.top_k, vocabulary)
    mass = mass.masked_fill(rank >= top_k[:, None], 0.0)
    mass = mass / mass.sum(-1, keepdim=True)
    before = mass.cumsum(-1) - mass
    mass = mass.masked_fill((before >= rows.top_p[:, None]) & (rank > 0), 0.0)
    mass = mass.masked_fill(mass < rows.min_p[:, None] * mass[:, :1], 0.0)
    total = mass.cumsum(-1)
    reached = (total > (rows.uniform * total[:, -1])[:, None]) & (mass > 0)
    choice = ids.gather(1, reached.int().argmax(-1, keepdim=True))[:, 0]
    return torch.where(greedy, z.argmax(-1), choice)
