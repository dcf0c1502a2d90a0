"""Draws of the confidence kernels against the reference.

Without a GPU the kernels run in Triton's interpreter.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from kernels import candidates, merge, sampling
from kernels.confidence import confidence, score
from kernels.philox import keyed_uniform
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
    interpreted,
    reference,
    uniforms,
)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter


@triton.jit
def _uniforms_kernel(seeds, counters, out):
    row = tl.program_id(0)
    tl.store(out + row, keyed_uniform(seeds, counters, row))


@triton.jit
def _given_uniform(seeds, counters, row):
    return tl.load(seeds + row).to(tl.float64) * 1.1102230246251565e-16


@pytest.fixture
def given(monkeypatch):
    """A seed is the uniform itself, in units of 2**-53."""
    monkeypatch.setattr(merge, "keyed_uniform", _given_uniform)
    monkeypatch.setattr(sampling, "keyed_uniform", _given_uniform)
    monkeypatch.setattr(candidates, "keyed_uniform", _given_uniform)

    def build(setting, uniform, filters=True):
        draw = draws(len(uniform), setting, filters=filters)
        bits = torch.tensor([int(u * 2**53) for u in uniform])
        return DrawRows(draw.temperature, bits, draw.counter, draw.top_k, draw.top_p, draw.min_p)

    return build


def test_uniforms_are_the_references():
    """To the bit."""
    draw = draws(16)
    out = torch.empty(16, dtype=torch.float64, device=ON)
    _uniforms_kernel[(16,)](draw.seed, draw.counter, out)
    assert torch.equal(out.cpu(), uniforms(draw))


@pytest.mark.parametrize(
    ("width", "dtype"), [(9, torch.float32), (2048, torch.bfloat16), (6000, torch.float32)]
)
def test_plain_draws_invert_the_sum_by_ids(width, dtype):
    """The token of the reference's uniform in the order of ids; greedy rows take the argmax."""
    torch.manual_seed(width)
    z = (torch.randn(24, width) * 3).to(dtype)
    z[:, ::5] = -INF
    settings = [((0.0, 0.5, 1.0, 3.0)[i % 4], 0, 1.0, 0.0) for i in range(24)]
    draw = draws(24, settings, seed=width, filters=False)
    found = confidence(z.to(ON), width, draw)
    warm = torch.where(draw.temperature.cpu() > 0, draw.temperature.cpu(), 1e-9)[:, None]
    total = (z.double() / warm).softmax(-1).cumsum(-1)
    expected = (total > uniforms(draw)[:, None] * total[:, -1:]).int().argmax(-1)
    assert torch.equal(found.token.cpu(), expected)
    logs = z.double().log_softmax(-1).gather(1, expected[:, None])[:, 0]
    torch.testing.assert_close(found.logprob.cpu().double(), logs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temperature", [1e-46, 1e-200, 1e-30, 0.0])
def test_temperatures_below_fp32_take_the_argmax(temperature):
    """They are no 0 in fp64, where the reference divides by them."""
    z = torch.linspace(0, 1, 300).repeat(8, 1)
    draw = draws(8, (temperature, 0, 1.0, 0.0))
    assert torch.equal(reference(z, draw), torch.full((8,), 299))
    for kept in (
        draw,
        draws(8, (temperature, 0, 1.0, 0.0), filters=False),
        draws(8, (temperature, 250, 0.99, 0.0)),
    ):
        assert (confidence(z.to(ON), 300, kept).token == 299).all()


def test_frequencies_over_several_tiles():
    """150 keyed draws among six tokens of three tiles have the distribution's frequencies."""
    z = torch.full((1, 5000), -INF)
    ids = torch.tensor([0, 3, 2047, 2048, 4100, 4999])
    z[0, ids] = torch.tensor([0.3, -0.2, 1.2, 0.0, 0.9, -0.4])
    draw = draws(150, (1.5, 0, 1.0, 0.0), seed=1, filters=False)
    found = confidence(z.expand(150, -1).contiguous().to(ON), 5000, draw)
    assert chi_square_p(found.token, (z[0].double() / 1.5).softmax(-1)) > 1e-3


@pytest.mark.parametrize("setting", SETTINGS[:3])
def test_frequencies_with_filters(setting):
    """50 keyed draws have the frequencies of the kept tokens."""
    z = torch.tensor([0.3, -1.0, 1.2, 0.0, 0.9, -0.4, 0.5, -0.2]).bfloat16()
    share = torch.zeros(8, dtype=torch.float64)
    grid = draws(4096, setting)
    tokens = reference(z.expand(4096, -1), grid, (torch.arange(4096) + 0.5).double() / 4096)
    kept = tokens.unique()
    share[kept] = (z[kept].double() / setting[0]).softmax(-1)
    found = confidence(z.expand(50, -1).contiguous().to(ON), 8, draws(50, setting, seed=2))
    assert chi_square_p(found.token, share) > 1e-3


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


@interpreted
@pytest.mark.parametrize("setting", SETTINGS[:6])
@pytest.mark.parametrize("ties", [False, True])
def test_kept_sets_are_the_references(given, setting, ties):
    """A fine grid of uniforms, both ends included, draws token by token what the reference does."""
    torch.manual_seed(4)
    z = torch.randint(-2, 2, (14,)).bfloat16() if ties else (torch.randn(14) * 2).bfloat16()
    grid = [0.0, *((np.arange(8) + 0.37) / 8).tolist(), 1 - 2.0**-53]
    many, draw = z.expand(len(grid), -1).contiguous(), given(setting, grid)
    expected = reference(many, draw, torch.tensor(grid, dtype=torch.float64))
    assert torch.equal(confidence(many, 14, draw).token, expected)


def test_little_kept_mass():
    """Three tokens of 49,152 nearly equal ones; and a nucleus below a single token's share."""
    torch.manual_seed(3)
    z = torch.randn(4, 49152) * 0.01
    settings = [(1.0, 3, 1.0, 0.0), (1.0, 0, 1e-6, 0.0), (5.0, 2, 1.0, 0.0), SETTINGS[4]]
    draw = draws(4, settings)
    assert torch.equal(confidence(z.to(ON), 49152, draw).token.cpu(), reference(z, draw))


@interpreted
def test_tiny_masses_can_be_drawn(given):
    """A token of probability 2e-14 at the end of the order is what the last uniform draws."""
    z = torch.full((2, 3000), -INF)
    z[:, 5], z[:, 2999] = 0.0, math.log(2e-14)
    draw = given((1.0, 0, 1.0, 0.0), [1 - 2.0**-53, 1 - 1e-13], filters=False)
    assert confidence(z, 3000, draw).token.tolist() == [2999, 5]
    draw = given((1.0, 2, 1.0, 0.0), [1 - 2.0**-53, 1 - 1e-13])
    assert confidence(z, 3000, draw).token.tolist() == [2999, 5]


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
    """Of 60 tokens all over a real width: by ids, by likelihood, and from what top-p keeps."""
    torch.manual_seed(0)
    z = torch.full((1, 49152), -INF)
    ids = torch.arange(60) * 811 + 7
    z[0, ids] = torch.linspace(-2, 2, 60)[torch.randperm(60)]
    many = z.to(ON).expand(10_000, -1).contiguous()
    share = (z[0].double() / 1.5).softmax(-1)
    plain = draws(10_000, (1.5, 0, 1.0, 0.0), seed=6, filters=False)
    assert chi_square_p(confidence(many, 49152, plain).token, share) > 1e-3
    assert chi_square_p(BACKEND.sample(many, 49152, plain), share) > 1e-3
    ordered = share.sort(descending=True)
    kept = ordered.indices[ordered.values.cumsum(0) - ordered.values < 0.8]
    share = torch.zeros_like(share).scatter(0, kept, share[kept])
    filtered = draws(10_000, (1.5, 0, 0.8, 0.0), seed=13)
    found = confidence(many, 49152, filtered).token
    assert chi_square_p(found, share / share.sum()) > 1e-3
