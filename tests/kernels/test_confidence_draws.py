"""Draws of the confidence kernels against the reference.

Without a GPU the kernels run in Triton's interpreter.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from kernels.confidence import confidence, score
from kernels.race import race_key, race_times, words_of_block, words_of_ids, words_of_tile
from kernels.reference import sampling as plain
from kernels.types.sampling import DrawRows
from tests.kernels.drawn_rows import (
    BACKEND,
    INF,
    ON,
    SETTINGS,
    check,
    chi_square_p,
    draws,
    gpu,
    reference,
    with_word,
)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
MANY = 8192


@triton.jit
def _words_kernel(keys, counters, one, tile, some, start, block: tl.constexpr, rows: tl.constexpr):
    n = tl.arange(0, block)
    key, c0, c1, c2 = race_key(keys, counters, 1)
    tl.store(one + n, words_of_block(key, c0, c1, c2, start, block).to(tl.int64))
    ids = start + (n * 7 + 3) % block
    tl.store(some + n, words_of_ids(key, c0, c1, c2, ids).to(tl.int64))
    m = tl.arange(0, rows)
    key, c0, c1, c2 = race_key(keys, counters, m)
    words = words_of_tile(key, c0, c1, c2, start, block, rows)
    tl.store(tile + m[None, :] * block + n[:, None], words.to(tl.int64))


@triton.jit
def _times_kernel(words, out, block: tl.constexpr):
    n = tl.arange(0, block)
    tl.store(out + n, race_times(tl.load(words + n).to(tl.uint32)))


def test_words_are_the_references():
    """To the bit: of a block, of a tile of several rows, and of ids in any order."""
    draw, start, block = draws(4), 4096, 64
    one, some = (torch.empty(block, dtype=torch.int64, device=ON) for _ in range(2))
    tile = torch.empty(4, block, dtype=torch.int64, device=ON)
    _words_kernel[(1,)](draw.key, draw.counter, one, tile, some, start, block, 4)
    words = plain.philox_words(draw.key, draw.counter, start + block)[:, start:]
    assert torch.equal(tile, words) and torch.equal(one, words[1])
    assert torch.equal(some, words[1, (torch.arange(block) * 7 + 3) % block])


def test_times_keep_their_digits():
    """To 3e-7 of each: tiny ones, those of nearly all ones, and both sides of every seam."""
    seams = [2**30, int(2**32 * (1 - 0.5**0.5)), 2**31, *(2**32 - 2**k for k in range(1, 31))]
    near = [seam + d for seam in seams for d in (-1, 0, 1)]
    found = [*range(64), *near, *(2**32 - 1 - i for i in range(64)), *(2**k for k in range(32))]
    rng = np.random.default_rng(0)
    block = 1024
    found += rng.integers(0, 2**32, block - len(found)).tolist()
    words = torch.tensor(found, device=ON)
    out = torch.empty(block, device=ON)
    _times_kernel[(1,)](words, out, block)
    torch.testing.assert_close(out.double(), plain.race_times(words), rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    ("width", "dtype"), [(9, torch.float32), (2048, torch.bfloat16), (6000, torch.float32)]
)
def test_plain_draws_are_the_references(width, dtype):
    """The same key draws the same token; greedy rows take the argmax."""
    torch.manual_seed(width)
    z = (torch.randn(16, width) * 3).to(dtype)
    z[:, ::5] = -INF
    settings = [((0.0, 0.5, 1.0, 3.0)[i % 4], 0, 1.0, 0.0) for i in range(16)]
    draw = draws(16, settings, seed=width, filters=False)
    found, expected = confidence(z.to(ON), width, draw), reference(z, draw)
    assert torch.equal(found.token.cpu(), expected)
    logs = z.double().log_softmax(-1).gather(1, expected[:, None])[:, 0]
    torch.testing.assert_close(found.logprob.cpu().double(), logs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1e-46, 1e-200, 1e-30, 0.0])
def test_temperatures_below_fp32_take_the_argmax(temperature):
    """They are no 0 in fp64, where the reference divides by them."""
    z = torch.linspace(0, 1, 300).repeat(4, 1)
    draw = draws(4, (temperature, 0, 1.0, 0.0))
    assert torch.equal(reference(z, draw), torch.full((4,), 299))
    for kept in (
        draws(4, (temperature, 0, 1.0, 0.0), filters=False),
        draws(4, (temperature, 250, 0.99, 0.0)),
    ):
        assert (confidence(z.to(ON), 300, kept).token == 299).all()


def test_a_temperature_beyond_fp32_takes_all_alike():
    z = torch.tensor([[0.0, -INF, 1.0, 2.0]]).repeat(24, 1)
    draw = draws(24, (1e300, 0, 1.0, 0.0), filters=False)
    found = confidence(z.to(ON), 4, draw).token.cpu()
    assert torch.equal(found, reference(z, draw)) and set(found.tolist()) == {0, 2, 3}


def test_frequencies_over_several_tiles():
    """60 keyed draws among six tokens of three tiles have the distribution's frequencies."""
    z = torch.full((1, 5000), -INF)
    ids = torch.tensor([0, 3, 2047, 2048, 4100, 4999])
    z[0, ids] = torch.tensor([0.3, -0.2, 1.2, 0.0, 0.9, -0.4])
    draw = draws(60, (1.5, 0, 1.0, 0.0), seed=1, filters=False)
    found = confidence(z.expand(60, -1).contiguous().to(ON), 5000, draw)
    assert chi_square_p(found.token, (z[0].double() / 1.5).softmax(-1)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [300, 9000])
def test_filtered_draws_are_the_references(width, dtype):
    """The same key draws the same token; ties (300: seven values), both zeros and -inf included."""
    torch.manual_seed(width)
    z = torch.randn(14, width) * 3
    if width == 300:
        z = torch.randint(-3, 4, (14, width)).float()
    z[:, 1::3] = -INF
    z[:, 0], z[:, 2] = -0.0, 0.0
    z = z.to(dtype)
    draw = draws(14, [SETTINGS[i % 7] for i in range(14)], seed=width)
    found = confidence(z.to(ON), width, draw)
    expected = reference(z, draw)
    assert torch.equal(found.token.cpu(), expected)
    logs = z.double().log_softmax(-1).gather(1, expected[:, None])[:, 0]
    torch.testing.assert_close(found.logprob.cpu().double(), logs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("setting", SETTINGS[:6])
@pytest.mark.parametrize("ties", [False, True])
def test_kept_sets_are_the_references(setting, ties):
    """Hot rows of equal shares draw all that is kept, token by token what the reference draws."""
    torch.manual_seed(4)
    z = torch.randint(-2, 2, (14,)).bfloat16() if ties else (torch.randn(14) * 2).bfloat16()
    many, draw = z.expand(16, -1).contiguous(), draws(16, setting, seed=3)
    found = confidence(many.to(ON), 14, draw).token.cpu()
    assert torch.equal(found, reference(many, draw))
    assert plain.kept(many[:1].double() / setting[0], draws(1, setting))[0, found].all()


def test_little_kept_mass():
    """Three tokens of 49,152 nearly equal ones; and a nucleus below a single token's share."""
    torch.manual_seed(3)
    z = torch.randn(4, 49152) * 0.01
    settings = [(1.0, 3, 1.0, 0.0), (1.0, 0, 1e-6, 0.0), (5.0, 2, 1.0, 0.0), SETTINGS[4]]
    draw = draws(4, settings)
    assert torch.equal(confidence(z.to(ON), 49152, draw).token.cpu(), reference(z, draw))


@pytest.mark.parametrize(("word", "wins"), [(0, True), (2**32 - 1, False)])
def test_words_of_zeros_and_of_ones(word, wins):
    """The soonest time wins against all others; the latest still arrives where it is alone."""
    key, counter, token = with_word(word, MANY)
    z = torch.full((3, MANY), -1.0)
    z[1], z[2, token - token % 4 : token - token % 4 + 4] = -INF, 1.0
    z[1, token] = 0.0
    for filters in ({}, {"top_k": [1, 1, 2]}, {"top_p": [1.0, 0.9, 0.99]}):
        draw = DrawRows.on(
            ON, temperature=[1.0] * 3, key=[key] * 3, counter=[counter] * 3, **filters
        )
        found = confidence(z.to(ON), MANY, draw).token.cpu()
        assert torch.equal(found, reference(z, draw))
        assert found[1] == token
        if not filters:
            assert ((found == token) == torch.tensor([wins, True, wins])).all()


def test_other_logits_to_draw_from():
    """Tokens depend on ``source``, statistics and log-probabilities on ``logits``."""
    torch.manual_seed(0)
    z, other = torch.randn(9, 3000), torch.randn(9, 3000, device=ON) * 3
    z = z.to(ON)
    draw = draws(9, [SETTINGS[6], (1.0, 0, 1.0, 0.0), SETTINGS[0]] * 3)
    found = confidence(z, 3000, draw, source=other)
    assert torch.equal(found.token, confidence(other, 3000, draw).token)
    check(z, found)
    torch.testing.assert_close(found.logprob, score(z, 3000, found.token), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mark", [pytest.param(0, marks=gpu)])
def test_on_a_gpu_ten_thousand_draws_have_the_frequencies(mark):
    """Of 60 tokens all over a real width, and from what top-p keeps."""
    torch.manual_seed(0)
    z = torch.full((1, 49152), -INF)
    ids = torch.arange(60) * 811 + 7
    z[0, ids] = torch.linspace(-2, 2, 60)[torch.randperm(60)]
    many = z.to(ON).expand(10_000, -1).contiguous()
    share = (z[0].double() / 1.5).softmax(-1)
    draw = draws(10_000, (1.5, 0, 1.0, 0.0), seed=6, filters=False)
    assert chi_square_p(confidence(many, 49152, draw).token, share) > 1e-3
    assert torch.equal(BACKEND.sample(many, 49152, draw), BACKEND.sample(many, 49152, draw, False))
    ordered = share.sort(descending=True)
    kept = ordered.indices[ordered.values.cumsum(0) - ordered.values < 0.8]
    share = torch.zeros_like(share).scatter(0, kept, share[kept])
    filtered = draws(10_000, (1.5, 0, 0.8, 0.0), seed=13)
    found = confidence(many, 49152, filtered).token
    assert chi_square_p(found, share / share.sum()) > 1e-3
