"""The statistics of a boundary against fp64, on everything that logits can be."""

from __future__ import annotations

import math

import pytest
import torch

from kernels import ops
from kernels.reference.confidence import confidence as reference
from tests.confidence_oracle import oracle

WIDTHS = (1, 2, 127, 49152)
ROWS = 64
INF = math.inf
CPU = ops.CpuBackend()


def check(z, found):
    """All rows valid and equal to fp64 within a few units of fp32."""
    assert found.valid.all()
    for name, expected in oracle(z).items():
        mine = getattr(found, name)
        assert mine.dtype == (torch.int64 if name == "argmax" else torch.float32)
        torch.testing.assert_close(mine.to(expected.dtype), expected, rtol=2e-6, atol=2e-6)


def random_rows(width, scale):
    """Normal logits, reproducible."""
    torch.manual_seed(width)
    return torch.randn(ROWS, width) * scale


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scale", [0.01, 1.0, 6.0])
def test_random(width, scale):
    """From nearly flat to nearly certain."""
    z = random_rows(width, scale)
    check(z, CPU.confidence(z, width))


@pytest.mark.parametrize("width", WIDTHS)
def test_all_equal(width):
    """Entropy log V, probability 1 / V, the first id wins."""
    z = torch.full((3, width), -2.5)
    found = CPU.confidence(z, width)
    check(z, found)
    assert found.argmax.tolist() == [0, 0, 0]
    assert found.margin.tolist() == [INF if width == 1 else 0.0] * 3
    torch.testing.assert_close(found.entropy, torch.full((3,), math.log(width)))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shift", [-1000.0, -30.0, 1000.0])
def test_shifted(width, shift):
    """Far from zero and all negative; a shift that fp32 takes exactly changes nothing else."""
    z = (random_rows(width, 3.0) * 64).round() / 64
    found, plain = CPU.confidence(z + shift, width), CPU.confidence(z, width)
    check(z + shift, found)
    for name in ("entropy", "max_prob", "log_odds", "margin", "argmax"):
        assert torch.equal(getattr(found, name), getattr(plain, name)), name


@pytest.mark.parametrize("width", [2, 127, 49152])
def test_one_hot(width):
    """Certainty: nothing is lost until the rest itself underflows."""
    z = torch.zeros(4, width)
    z[torch.arange(4), torch.tensor([0, 1, width // 2, width - 1])] = torch.tensor(
        [10.0, 30.0, 60.0, 80.0]
    )
    check(z, CPU.confidence(z, width))


@pytest.mark.parametrize("width", [2, 127, 49152])
def test_partly_minus_infinity(width):
    """Impossible tokens take no part; with one possible token all is certain."""
    z = random_rows(width, 2.0)
    z[:, 1::2] = -INF
    z[0, 1:] = -INF
    found = CPU.confidence(z, width)
    check(z, found)
    assert found.entropy[0] == 0 and found.max_prob[0] == 1
    assert found.log_odds[0] == found.margin[0] == INF


def test_a_single_token():
    """V = 1: there is no second and no doubt."""
    found = CPU.confidence(torch.tensor([[-7.25]]), 1)
    values = [float(v[0]) for v in found]
    assert values == [0.0, 1.0, INF, INF, -7.25, -7.25, 0.0, 1.0]


@pytest.mark.parametrize("width", WIDTHS)
def test_unusable_rows_are_flagged_and_alone(width):
    """NaN, +inf and nothing but -inf; the rows between them do not notice."""
    z = random_rows(width, 1.0)
    plain = CPU.confidence(z, width)
    broken = z.clone()
    broken[3, width // 2] = math.nan
    broken[10, width - 1] = INF
    broken[17] = -INF
    broken[24, 0], broken[24, width - 1] = INF, math.nan
    broken[31] = math.nan
    found = CPU.confidence(broken, width)
    bad = [3, 10, 17, 24, 31]
    assert torch.nonzero(~found.valid).flatten().tolist() == bad
    good = torch.ones(ROWS, dtype=torch.bool).index_fill(0, torch.tensor(bad), False)
    for before, after in zip(plain, found, strict=True):
        assert torch.equal(before[good], after[good])


@pytest.mark.parametrize("junk", [0.0, 1e30, INF, -INF, math.nan])
@pytest.mark.parametrize("width", [1, 127, 49152])
def test_padding_ids_are_masked(width, junk):
    """Whatever stands past the vocabulary, the statistics are bitwise those without it."""
    z = random_rows(width, 2.0)
    padded = torch.cat([z, torch.full((ROWS, 9), junk)], 1)
    assert_same_bits(CPU.confidence(padded, width), CPU.confidence(z, width))


@pytest.mark.parametrize("vocabulary", [0, -1, 12])
def test_vocabulary_out_of_range(vocabulary):
    """A head cannot have fewer rows than the tokenizer has ids."""
    with pytest.raises(ValueError, match=r"vocabulary must be in 1\.\.11, .* got"):
        CPU.confidence(torch.zeros(2, 11), vocabulary)


@pytest.mark.parametrize("lead", [1.0, 10.0, 17.5, 25.0, 40.0, 80.0, 87.1, 95.0, 110.0, 1e4])
def test_log_odds_where_one_minus_p_is_lost(lead):
    """Two tokens: the log-odds are the lead, also where fp32 holds p to be exactly 1.

    Beyond 87 they are 87, whichever code computes them.
    """
    z = torch.tensor([[0.0, lead]])
    found = CPU.confidence(z, 2)
    expected = min(float(oracle(z)["log_odds"][0]), 87.0)
    for each in (found, reference(z, 2), reference(z.double(), 2)):
        assert float(each.log_odds[0]) == pytest.approx(expected, rel=1e-6)
    assert (float(found.max_prob[0]) == 1.0) == (lead > 17)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_widened_first(dtype):
    """Statistics of the rounded logits, not rounded statistics."""
    z = random_rows(127, 2.0).to(dtype)
    assert_same_bits(CPU.confidence(z, 127), CPU.confidence(z.float(), 127))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("padding", [0, 5])
def test_a_row_alone_is_bitwise_the_row_in_a_batch(width, padding):
    """Place and company do not change a bit."""
    z = random_rows(width + padding, 3.0)
    z[5, 0] = math.nan
    together = CPU.confidence(z, width)
    for i in (0, 5, 6, 31, ROWS - 1):
        alone = CPU.confidence(z[i : i + 1].clone(), width)
        assert_same_bits(alone, ops.Confidence(*(v[i : i + 1] for v in together)))
    half = CPU.confidence(z[7:20], width)
    assert_same_bits(half, ops.Confidence(*(v[7:20] for v in together)))


def assert_same_bits(one, other):
    """Equal to the last bit, NaN included."""
    for name, mine, theirs in zip(one._fields, one, other, strict=True):
        if mine.dtype == torch.float32:
            mine, theirs = mine.view(torch.int32), theirs.view(torch.int32)
        assert torch.equal(mine, theirs), name
