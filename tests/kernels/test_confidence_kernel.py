"""The confidence kernels: statistics against fp64, draws against the reference, and bad input.

Without a GPU the kernels run in Triton's interpreter.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from kernels import candidates, merge, ops, sampling
from kernels import confidence as module
from kernels.backends.triton import TritonBackend
from kernels.confidence import confidence, score
from kernels.philox import keyed_uniform
from kernels.reference.sampling import philox_uniform
from kernels.types.sampling import DrawRows

INF = math.inf
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
ON = "cuda" if torch.cuda.is_available() else "cpu"
CPU, BACKEND = ops.CpuBackend(), TritonBackend(torch.device(ON))
gpu = [pytest.mark.gpu, pytest.mark.skipif(ON == "cpu", reason="needs an NVIDIA GPU")]
interpreted = pytest.mark.skipif(ON == "cuda", reason="replaces a function of the interpreter")
WIDTHS = (1, 127, 128, 49152, 151936, 152064)
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


def oracle(z):
    """All statistics in fp64, each by its own formula."""
    z = z.double()
    p = z.softmax(-1)
    top = z.amax(-1)
    first = (z == top[:, None]).int().argmax(-1)
    others = z.clone().scatter_(1, first[:, None], -INF)
    return {
        "entropy": torch.special.entr(p).sum(-1),
        "max_prob": p.amax(-1),
        "log_odds": top - others.logsumexp(-1),
        "margin": top - others.amax(-1),
        "max_logit": top,
        "logsumexp": z.logsumexp(-1),
        "argmax": first,
    }


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
        "seed": rng.integers(-(2**63), 2**63 - 1, rows),
        "counter": rng.integers(0, 2**32, (rows, 4)),
    }
    kept = {"top_k": top_k, "top_p": top_p, "min_p": min_p} if filters else {}
    return DrawRows.on(ON, temperature=temperature, **keys, **kept)


def uniforms(draw):
    """The reference's numbers of the same keys, fp64 [rows]."""
    seed, counter = draw.seed.cpu().numpy(), draw.counter.cpu().numpy()
    return philox_uniform(seed.astype(np.uint64), counter.astype(np.uint64))


def reference(z, draw, uniform=None):
    """Tokens of the reference, in order of likelihood."""
    rows = ops.SamplingRows(
        draw.temperature.cpu(),
        draw.top_k.cpu(),
        draw.top_p.cpu(),
        draw.min_p.cpu(),
        uniforms(draw) if uniform is None else uniform,
    )
    return CPU.sample(z.cpu(), z.shape[1], rows)


def chi_square_p(tokens, shares):
    """Probability of frequencies this far off; nothing of share 0 may be drawn."""
    found = torch.bincount(tokens.cpu(), minlength=len(shares)).double()
    assert (found[shares == 0] == 0).all()
    expected = (shares * len(tokens))[shares > 0]
    distance = ((found[shares > 0] - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, distance / 2))


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


@pytest.mark.parametrize("width", WIDTHS)
def test_statistics(width):
    """Every kind of row at once: the sound ones to 1e-5, the others flagged and alone."""
    z = all_kinds(width)
    found = confidence(z, width)
    assert found.valid.tolist() == [True] * (len(z) - INVALID) + [False] * INVALID
    assert found.argmax[-INVALID:].tolist() == [0] * INVALID
    assert found.entropy[-INVALID:].isnan().all()
    good = module.ScoredRows(*(v[:-INVALID] for v in found))
    check(z[:-INVALID], good)
    assert torch.equal(good.token, good.argmax)
    torch.testing.assert_close(good.logprob, good.max_prob.log(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [127, 5000])
def test_low_precision_logits_are_widened_first(dtype, width):
    """Statistics of the rounded logits, bitwise."""
    z = all_kinds(width).to(dtype)
    same_bits(confidence(z, width), confidence(z.float(), width))


@pytest.mark.parametrize("lead", [1.0, 17.5, 40.0, 80.0, 86.9, 87.1, 88.0, 103.0, 150.0, 1e4])
@pytest.mark.parametrize("width", [2, 5000])
def test_log_odds_where_one_minus_p_is_lost(lead, width):
    """Two tokens: the log-odds are the lead, also where fp32 holds p to be exactly 1.

    Beyond 87 they are 87, as on a CPU.
    """
    z = torch.full((1, width), -INF, device=ON)
    z[0, 0], z[0, -1] = 0.0, lead
    expected = min(float(oracle(z)["log_odds"]), 87.0)
    assert float(confidence(z, width).log_odds) == pytest.approx(expected, rel=1e-6)
    assert float(CPU.confidence(z.cpu(), width).log_odds) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("width", [1, 127, 2048, 5000])
def test_padding_and_row_stride(width):
    """Whatever stands past the vocabulary or between rows: bitwise the result without it.

    By sixteens, so that rows are aligned alike: vectors of another size are added in another order.
    """
    z = all_kinds(width)[2:5].bfloat16()
    wide = torch.tensor([1e30, INF, math.nan], device=ON)[:, None].repeat(1, width + 32).bfloat16()
    wide[:, :width] = z
    draw = draws(len(z), [SETTINGS[1], SETTINGS[2], SETTINGS[6]])
    expected = confidence(z, width, draw)
    same_bits(confidence(wide[:, : width + 16], width, draw), expected)
    same_bits(confidence(z, width, draw, source=wide[:, : width + 16]), expected)


def test_empty_batch():
    """No rows, no launch."""
    z = torch.empty(0, 300, device=ON)
    found = confidence(z, 300)
    assert all(v.shape == (0,) for v in found)
    assert score(z, 300, torch.empty(0, 4, dtype=torch.int64, device=ON)).shape == (0, 4)


def test_outputs_are_fully_written(monkeypatch):
    """Poisoned buffers change nothing."""
    z = all_kinds(5000)[6:10].bfloat16()
    draw = draws(len(z), SETTINGS[3])
    expected = confidence(z, 5000, draw)
    empty, new_empty = torch.empty, torch.Tensor.new_empty

    def poison(tensor):
        return tensor.fill_(math.nan if tensor.is_floating_point() else 77)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: poison(new_empty(*a, **k)))
    same_bits(confidence(z, 5000, draw), expected)


def part(draw, rows):
    """Some rows of a draw."""
    columns = ("temperature", "seed", "counter", "top_k", "top_p", "min_p")
    values = [getattr(draw, c) for c in columns]
    return DrawRows(*(None if v is None else v[rows].contiguous() for v in values))


def test_a_row_alone_is_bitwise_the_row_in_a_batch():
    """Place and company do not change a bit, drawn token included."""
    z = all_kinds(5000)[2:].bfloat16()
    draw = draws(len(z), [SETTINGS[i % 7] for i in range(len(z))])
    together = confidence(z, 5000, draw)
    for i in (0, 4, 7):
        alone = confidence(z[i : i + 1].clone(), 5000, part(draw, slice(i, i + 1)))
        same_bits(alone, module.ScoredRows(*(v[i : i + 1] for v in together)))


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


@pytest.mark.parametrize("width", [1, 127, 6000])
def test_score(width):
    """Of one target a row or several; ids out of range and unusable rows are NaN."""
    z = all_kinds(width)
    targets = torch.randint(0, width, (len(z), 5), device=ON)
    found = score(z, width, targets)
    logs = z.double().log_softmax(-1).gather(1, targets)[:-INVALID]
    torch.testing.assert_close(found[:-INVALID].double(), logs, rtol=1e-5, atol=1e-5)
    assert found[-INVALID:].isnan().all()
    plain = CPU.score(z.cpu(), width, targets.cpu()).float()
    torch.testing.assert_close(found.cpu(), plain, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert torch.equal(score(z, width, targets[:, 1].clone())[:-INVALID], found[:-INVALID, 1])
    assert score(z, width, torch.tensor([-1, width] + [0] * 9, device=ON))[:2].isnan().all()


def arguments():
    """Sound ones."""
    return {
        "logits": torch.zeros(3, 20, device=ON),
        "vocabulary": 17,
        "draw": draws(3),
        "source": torch.zeros(3, 18, device=ON),
    }


def changed(**columns):
    """A draw with another column."""
    values = {**vars(draws(3)), **columns}
    return DrawRows(**values)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("logits", {"logits": torch.zeros(3, 20, 1)}),
        ("logits", {"logits": torch.zeros(3, 20, dtype=torch.float64)}),
        ("logits", {"logits": torch.zeros(20, 3).t()}),
        ("vocabulary", {"vocabulary": 0}),
        ("vocabulary", {"vocabulary": 21}),
        ("source", {"source": torch.zeros(2, 20)}),
        ("source", {"source": torch.zeros(3, 16)}),
        ("source", {"source": torch.zeros(3, 20, dtype=torch.int32)}),
        ("source", {"source": torch.zeros(3, 20, device="meta")}),
        ("draw.temperature", {"draw": changed(temperature=torch.zeros(3))}),
        ("draw.seed", {"draw": changed(seed=torch.zeros(2, dtype=torch.int64))}),
        ("draw.counter", {"draw": changed(counter=torch.zeros(3, 3, dtype=torch.int64))}),
        ("draw.top_k", {"draw": changed(top_k=torch.zeros(3))}),
        ("draw.top_p", {"draw": changed(top_p=torch.zeros(6, dtype=torch.float64)[::2])}),
        ("draw.min_p", {"draw": changed(min_p=torch.zeros(3, device="meta").double())}),
    ],
)
def test_bad_arguments_are_named(name, bad):
    """Before anything is launched."""
    moved = {
        k: v.to(ON) if isinstance(v, torch.Tensor) and v.device.type == "cpu" else v
        for k, v in bad.items()
    }
    with pytest.raises(ValueError, match=rf"^{name} must "):
        confidence(**(arguments() | moved))


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": [-0.1]},
        {"temperature": [math.nan]},
        {"top_k": [-1]},
        {"top_p": [0.0]},
        {"top_p": [1.5]},
        {"min_p": [-0.5]},
        {"min_p": [math.nan]},
    ],
)
def test_bad_values_are_named(bad):
    """Where a draw is built, on the host."""
    sound = {"temperature": [1.0], "seed": [0], "counter": [[0] * 4]}
    with pytest.raises(ValueError, match=rf"^{next(iter(bad))} must be .*, got \["):
        DrawRows.on(ON, **(sound | bad))


@pytest.mark.parametrize("targets", [torch.zeros(2), torch.zeros(3), torch.zeros(()).long()])
def test_bad_targets_are_named(targets):
    """Shape and type."""
    with pytest.raises(ValueError, match=r"^targets must "):
        score(torch.zeros(3, 20, device=ON), 20, targets.to(ON))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("mark", [pytest.param(0, marks=gpu)])
def test_on_a_gpu_a_row_alone_is_bitwise_the_row_among_64(dtype, mark):
    """At a real width, drawn tokens included."""
    torch.manual_seed(0)
    z = (torch.randn(64, 151936, device=ON) * 4).to(dtype)
    draw = draws(64, [SETTINGS[i % 7] for i in range(64)])
    together = confidence(z, 151665, draw)
    check(z[:, :151665], together)
    for i in (0, 1, 31, 63):
        alone = confidence(z[i : i + 1].clone(), 151665, part(draw, slice(i, i + 1)))
        same_bits(alone, module.ScoredRows(*(v[i : i + 1] for v in together)))


@pytest.mark.parametrize("mark", [pytest.param(0, marks=gpu)])
def test_on_a_gpu_a_replayed_graph_is_bitwise_eager(mark):
    """With new logits in the captured buffer."""
    z = torch.randn(8, 151936, device=ON).bfloat16()
    draw = draws(8, [SETTINGS[i % 7] for i in range(8)])
    confidence(z, 151936, draw)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = confidence(z, 151936, draw)
    z.copy_(torch.randn_like(z) * 3)
    graph.replay()
    same_bits(captured, confidence(z, 151936, draw))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("width", [pytest.param(w, marks=gpu) for w in (151936, 152064)])
def test_on_a_gpu_scores_at_real_widths(width, dtype):
    """Through the face as well."""
    torch.manual_seed(0)
    z = (torch.randn(64, width, device=ON) * 4).to(dtype)
    targets = torch.randint(0, 151665, (64, 3), device=ON)
    logs = z[:, :151665].double().log_softmax(-1).gather(1, targets)
    torch.testing.assert_close(score(z, 151665, targets).double(), logs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(BACKEND.score(z, 151665, targets), logs, rtol=1e-5, atol=1e-5)


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
