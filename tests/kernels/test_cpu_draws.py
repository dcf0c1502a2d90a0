"""Draws of the CPU kernels: the reference's tokens, and exact probabilities at full width."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kernels import cpu
from kernels.reference import sampling
from kernels.types.sampling import DrawRows
from tests.kernels.drawn_rows import chi_square_p, with_word

SETS = cpu.instruction_sets()
INF, WIDE = math.inf, 151936
TEMPERATURES, TOP_KS = (0.0, 0.3, 1.0, 1.7, 5.0), (0, 0, 1, 5, 50, 3000)
TOP_PS, MIN_PS = (1.0, 1.0, 0.9, 0.5, 0.99, 1e-3), (0.0, 0.0, 0.05, 1.0, 1e-9)


def keyed(rows: int, seed: int, **columns) -> DrawRows:
    rng = np.random.default_rng(seed)
    counter = rng.integers(0, 2**32, (rows, 3))
    key = rng.integers(-(2**63), 2**63 - 1, rows)
    return DrawRows.on("cpu", key=key, counter=counter, **columns)


def one_key(rows: int, **columns) -> DrawRows:
    """Rows that lie at the positions of one text."""
    counter = torch.zeros(rows, 3, dtype=torch.int64)
    counter[:, 1] = torch.arange(rows)
    return DrawRows.on("cpu", key=[5] * rows, counter=counter, temperature=[1.0] * rows, **columns)


def mixed(rows: int, seed: int) -> DrawRows:
    """Every filter, alone and with others."""
    rng = np.random.default_rng(seed)
    return keyed(
        rows,
        seed,
        temperature=rng.choice(TEMPERATURES, rows),
        top_k=rng.choice(TOP_KS, rows),
        top_p=rng.choice(TOP_PS, rows),
        min_p=rng.choice(MIN_PS, rows),
    )


def logits(rows: int, width: int, seed: int) -> torch.Tensor:
    """Flat and peaked rows, some with -inf."""
    torch.manual_seed(seed)
    spread = torch.tensor([0.01, 1.0, 4.0, 10.0])[torch.arange(rows) % 4]
    z = torch.randn(rows, width) * spread[:, None]
    if width > 3:
        z[5::4, ::3] = -INF
    return z


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("width", [1, 2, 5, 15, 33, 64, 127, 1000, 5003])
def test_a_key_draws_the_references_token(width: int, instruction_set: str):
    """In both types, with filters and without, also where the row ends within a vector."""
    z, draw = logits(40, width, width), mixed(40, width)
    plain = DrawRows(draw.temperature, draw.key, draw.counter)
    wide = torch.cat([z, torch.full((40, 3), INF)], 1)  # past the vocabulary anything
    for how in (draw, plain):
        expected = sampling.sample(z, width, how)
        for given in (z, wide, wide.double()):
            assert torch.equal(cpu.draw(given, width, how, instruction_set), expected)


@pytest.mark.parametrize("instruction_set", SETS)
def test_logits_beyond_fp32(instruction_set: str):
    """fp64 logits are compared as such: fp32 could not tell the two best apart."""
    z = torch.zeros(64, 300, dtype=torch.float64)
    z[:, 7], z[:, 200] = 1e6, 1e6 + 1e-4
    draw = keyed(64, 0, temperature=[1e-5] * 64, top_k=[1, 2] * 32)
    found = cpu.draw(z, 300, draw, instruction_set)
    assert (found[::2] == 200).all()
    assert torch.equal(found, sampling.sample(z, 300, draw))


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.95, 0.999])
def test_wide_filters(top_p: float, instruction_set: str):
    """Flat rows at a real width: the edge lies among tens of thousands of tokens."""
    z = logits(3, WIDE, 1)
    z[2] = z[2].round()  # thousands of equals at the edge
    for top_k in (0, 20_000):
        draw = keyed(3, 2, temperature=[1.0, 2.0, 1.0], top_k=[top_k] * 3, top_p=[top_p] * 3)
        found = cpu.draw(z, WIDE, draw, instruction_set)
        assert torch.equal(found, sampling.sample(z, WIDE, draw))


@pytest.mark.parametrize("instruction_set", SETS)
def test_equal_best_scores_go_to_the_lower_id(instruction_set: str):
    """Where scores cannot differ: a temperature that drowns nothing, and greedy rows."""
    z = torch.full((8, 100), -2.0)
    z[:, [3, 50, 99]] = 1.0
    greedy = keyed(8, 1, temperature=[0.0] * 8)
    assert (cpu.draw(z, 100, greedy, instruction_set) == 3).all()
    first = keyed(8, 1, temperature=[1.0] * 8, top_k=[1] * 8)
    assert (cpu.draw(z, 100, first, instruction_set) == 3).all()
    two = keyed(64, 1, temperature=[1.0] * 64, top_k=[2] * 64)
    found = cpu.draw(z[:1].expand(64, -1).contiguous(), 100, two, instruction_set)
    assert set(found.tolist()) == {3, 50}


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize(("word", "wins"), [(0, True), (1, True), (2**32 - 1, False)])
def test_words_of_zeros_and_of_ones(word: int, wins: bool, instruction_set: str):
    """The soonest time wins against all others; the latest still arrives where it is alone."""
    key, counter, token = with_word(word, WIDE)
    z = torch.zeros(2, WIDE)
    z[1] = -INF
    z[1, token] = -3.0
    draw = DrawRows.on("cpu", temperature=[1.0] * 2, key=[key] * 2, counter=[counter] * 2)
    assert sampling.philox_words(draw.key, draw.counter, WIDE)[0, token] == word
    found = cpu.draw(z, WIDE, draw, instruction_set)
    assert torch.equal(found, sampling.sample(z, WIDE, draw))
    assert found[1] == token and (found[0] == token) == wins


@pytest.mark.parametrize("instruction_set", SETS)
def test_rows_without_a_distribution_give_0(instruction_set: str):
    z = torch.zeros(6, 40)
    z[0, 39], z[1, 0], z[2, 17], z[3], z[4, 33] = math.nan, math.nan, INF, -INF, 2.0
    for temperature in (0.0, 1.0):
        for filters in ({}, {"top_k": [3] * 6, "top_p": [0.5] * 6}):
            draw = keyed(6, 3, temperature=[temperature] * 6, **filters)
            found = cpu.draw(z, 40, draw, instruction_set)
            assert found[:4].tolist() == [0] * 4
            assert torch.equal(found, sampling.sample(z, 40, draw))


def two_rows(width: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two distributions that are alike: logits and probabilities of both."""
    torch.manual_seed(8)
    one = torch.randn(width) * 1.5
    two = one + torch.randn(width)
    return one, two, one.double().softmax(0), two.double().softmax(0)


def shared(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """By token: how likely both draw it with the same times, 1 / sum max(p_y / p_x, q_y / q_x)."""
    return 1 / torch.maximum(p[None] / p[:, None], q[None] / q[:, None]).sum(1)


def test_equal_draws_have_the_share_of_their_formula():
    """With one key two distributions draw the same token as often as they can; with two, seldom."""
    one, two, p, q = two_rows()
    count, draw = 40_000, one_key(40_000)
    drawn = [cpu.draw(z.expand(count, -1).contiguous(), 12, draw) for z in (one, two)]
    share = float(shared(p, q).sum())
    error = math.sqrt(share * (1 - share) / count)
    assert float((drawn[0] == drawn[1]).double().mean()) == pytest.approx(share, abs=3 * error)
    assert chi_square_p(drawn[0], p) > 1e-3 and chi_square_p(drawn[1], q) > 1e-3
    apart = one_key(count)
    apart.key[:] = 6
    alone = cpu.draw(two.expand(count, -1).contiguous(), 12, apart)
    share = float((p * q).sum())
    error = math.sqrt(share * (1 - share) / count)
    assert float((drawn[0] == alone).double().mean()) == pytest.approx(share, abs=3 * error)


def test_draws_are_exact_also_where_the_other_model_was_rejected():
    """What one draws where the other drew something else has its conditional distribution."""
    one, two, p, q = two_rows()
    count, draw = 40_000, one_key(40_000)
    drawn = [cpu.draw(z.expand(count, -1).contiguous(), 12, draw) for z in (one, two)]
    rejected = drawn[0] != drawn[1]
    left = p - shared(p, q)
    assert 5_000 < int(rejected.sum()) < 35_000
    assert chi_square_p(drawn[0][rejected], left / left.sum()) > 1e-3


def test_the_tail_at_full_width():
    """Half of the mass on one token, the rest on 151,935 that grow tenfold in likelihood.

    With times of fewer digits the soonest ones would be equal, and win by their ids.
    """
    p = torch.logspace(0, 1, WIDE, dtype=torch.float64)
    p[77] = 0.0
    p /= 2 * p.sum()
    p[77] = 0.5
    z, count = p.log().float()[None], 6_000
    rows = [cpu.draw(z.expand(500, -1).contiguous(), WIDE, part) for part in parts(count, 500)]
    bucket = torch.arange(WIDE) // (WIDE // 16)
    bucket[77] = 17
    shares = torch.zeros(18, dtype=torch.float64).index_add(0, bucket, p)
    assert chi_square_p(bucket[torch.cat(rows)], shares) > 1e-3


def parts(count: int, size: int):
    """A text's positions, some at a time."""
    draw = one_key(count)
    for at in range(0, count, size):
        yield DrawRows(*(c[at : at + size] for c in (draw.temperature, draw.key, draw.counter)))


def test_bad_input_is_named():
    draw = keyed(2, 0, temperature=[1.0] * 2)
    assert len(cpu.draw(torch.zeros(0, 5), 5, keyed(0, 0, temperature=[]))) == 0
    with pytest.raises(ValueError, match=r"^vocabulary must be in 1\.\.5"):
        cpu.draw(torch.zeros(2, 5), 6, draw)
    with pytest.raises(ValueError, match=r"^logits must be float32 or float64"):
        cpu.draw(torch.zeros(2, 5).bfloat16(), 5, draw)
    with pytest.raises(ValueError, match=r"^draw.temperature must have shape \[3\]"):
        cpu.draw(torch.zeros(3, 5), 5, draw)
    with pytest.raises(ValueError, match="no instruction set mmx"):
        cpu.draw(torch.zeros(2, 5), 5, draw, "mmx")
