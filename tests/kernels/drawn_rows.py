"""Logits of every kind, their statistics in fp64, draws and what the reference makes of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kernels import ops
from kernels.backends.triton import TritonBackend
from kernels.reference import sampling
from kernels.types.sampling import DrawRows
from tests.confidence_oracle import oracle

INF = math.inf
ON = "cuda" if torch.cuda.is_available() else "cpu"
CPU, BACKEND = ops.CpuBackend(), TritonBackend(torch.device(ON))
gpu = [pytest.mark.gpu, pytest.mark.skipif(ON == "cpu", reason="needs an NVIDIA GPU")]
interpreted = pytest.mark.skipif(ON == "cuda", reason="replaces a function of the interpreter")
INVALID = 3
SETTINGS = [  # temperature, top_k, top_p, min_p
    (0.7, 5, 1.0, 0.0),
    (1.3, 0, 0.8, 0.0),
    (1.0, 0, 1.0, 0.2),
    (0.9, 7, 0.9, 0.05),
    (2.0, 1, 1.0, 0.0),
    (1.0, 100, 0.01, 1.0),
    (0.0, 3, 0.5, 0.1),
]


def all_kinds(width):
    """A row of everything that logits can be; the last INVALID have no distribution."""
    torch.manual_seed(width)
    z = torch.randn(11, width) * torch.tensor([0.01, 1.0, 6.0] + [3.0] * 8)[:, None]
    z[3] = -2.5
    z[4, width // 2] += 50
    z[5] -= 150
    z[6] = (z[6] * 64).round() / 64 + 1000
    z[7] = (z[7] * 64).round() / 64 - 1000
    z[1, 1::2] = -INF
    z[8] = -INF
    z[9, width // 2] = math.nan
    z[10, width - 1] = INF
    return z.to(ON)


def check(z, found, atol=1e-5, exact=("margin", "max_logit", "argmax")):
    """All rows valid; exact values exact, the rest within 1e-5."""
    assert found.valid.all()
    for name, expected in oracle(z).items():
        mine = getattr(found, name)
        assert mine.dtype == (torch.int64 if name == "argmax" else torch.float32)
        if name in exact:
            assert torch.equal(mine, expected.to(mine.dtype)), name
        else:
            torch.testing.assert_close(mine.double(), expected, rtol=1e-5, atol=atol)


def same_bits(one, other):
    """Equal to the last bit, NaN included."""
    for name, mine, theirs in zip(one._fields, one, other, strict=True):
        if mine.dtype == torch.float32:
            mine, theirs = mine.view(torch.int32), theirs.view(torch.int32)
        assert torch.equal(mine, theirs), name


def draws(rows, setting=(1.0, 0, 1.0, 0.0), seed=0, filters=True):
    """Keys of a seed, and one setting or one a row."""
    rng = np.random.default_rng(seed)
    settings = [setting] * rows if isinstance(setting, tuple) else setting
    temperature, top_k, top_p, min_p = zip(*settings, strict=True)
    keys = {
        "key": rng.integers(-(2**63), 2**63 - 1, rows),
        "counter": rng.integers(0, 2**32, (rows, 3)),
    }
    kept = {"top_k": top_k, "top_p": top_p, "min_p": min_p} if filters else {}
    return DrawRows.on(ON, temperature=temperature, **keys, **kept)


def reference(z, draw):
    """Tokens of the reference."""
    columns = {name: None if c is None else c.cpu() for name, c in vars(draw).items()}
    return sampling.sample(z.cpu(), z.shape[1], DrawRows(**columns))


def with_word(value, vocabulary, seed=0):
    """A key, counters and a token below ``vocabulary`` whose word has that value.

    Philox is undone from four words, of which three are tried until the last counter is a token's.
    """
    rng, key = np.random.default_rng(seed), 0x1234567_89ABCDEF
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    undo = [np.uint64(pow(m, -1, 2**32)) for m in (0xD2511F53, 0xCD9E8D57)]
    while True:
        c = [rng.integers(0, 2**32, 2**19, np.uint64) for _ in range(4)]
        place = int(rng.integers(4))
        c[place][:] = value
        for step in range(9, -1, -1):
            k0 = np.uint64((key + step * 0x9E3779B9) & 0xFFFFFFFF)
            k1 = np.uint64(((key >> 32) + step * 0xBB67AE85) & 0xFFFFFFFF)
            before0, before2 = c[3] * undo[0] & mask, c[1] * undo[1] & mask
            high0 = before0 * np.uint64(0xD2511F53) >> shift
            high2 = before2 * np.uint64(0xCD9E8D57) >> shift
            c = [before0, c[0] ^ high2 ^ k0, before2, c[2] ^ high0 ^ k1]
        (fits,) = np.nonzero(c[3] < vocabulary // 4)
        if len(fits):
            counter = [int(part[fits[0]]) for part in c]
            return key, counter[:3], 4 * counter[3] + place


def chi_square_p(tokens, shares):
    """Probability of frequencies this far off; nothing of share 0 may be drawn."""
    found = torch.bincount(tokens.cpu(), minlength=len(shares)).double()
    assert (found[shares == 0] == 0).all()
    expected = (shares * len(tokens))[shares > 0]
    distance = ((found[shares > 0] - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, distance / 2))
