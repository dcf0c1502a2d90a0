"""The fused LM head: its statistics against fp64 products of the same inputs, and its draws."""

from __future__ import annotations

import math

import pytest
import torch

from kernels import ops
from kernels.confidence import confidence
from kernels.lm_head import CONFIGS, config_of, lm_head
from kernels.merge import ScoredRows
from kernels.types.sampling import DrawRows

INF = math.inf
ON = "cuda" if torch.cuda.is_available() else "cpu"
CPU = ops.CpuBackend()
gpu = [pytest.mark.gpu, pytest.mark.skipif(ON == "cpu", reason="needs an NVIDIA GPU")]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter


def inputs(rows, depth, head_rows, dtype=torch.bfloat16, scale=0.5):
    """Hidden states and weights; logits of a few units."""
    torch.manual_seed(rows * 1000 + head_rows)
    hidden = torch.randn(rows, depth) * scale
    return hidden.to(dtype).to(ON), torch.randn(head_rows, depth).to(dtype).to(ON)


def exact(hidden, weight, vocabulary):
    """Logits in fp64."""
    return (hidden.double() @ weight.double().t())[:, :vocabulary]


def check(found, z, slack=1.0):
    """Statistics of fp64 logits within the rounding of fp32 sums, ``slack`` times as long."""
    expected = CPU.confidence(z.cpu(), z.shape[1])
    assert found.valid.all()
    for name in ("entropy", "max_prob", "log_odds", "margin", "max_logit", "logsumexp"):
        mine, theirs = getattr(found, name).cpu().double(), getattr(expected, name)
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-5 * slack)
    second = z.topk(min(2, z.shape[1]), -1).values
    clear = (second[:, 0] - second[:, -1] > 1e-4 * slack).cpu()
    assert torch.equal(found.argmax.cpu()[clear], expected.argmax[clear])


def same_bits(one, other):
    """Equal to the last bit, NaN included."""
    for name, mine, theirs in zip(one._fields, one, other, strict=True):
        if mine.dtype == torch.float32:
            mine, theirs = mine.view(torch.int32), theirs.view(torch.int32)
        assert torch.equal(mine, theirs), name


def draws(rows, temperature=1.0, **filters):
    """Keys by row."""
    counter = torch.arange(rows * 3).view(rows, 3)
    columns = {k: [v] * rows for k, v in filters.items()}
    return DrawRows.on(
        ON, temperature=[temperature] * rows, key=torch.arange(rows) + 7, counter=counter, **columns
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("rows", "head_rows"), [(1, 1), (3, 127), (16, 128), (17, 300), (130, 640)]
)
def test_statistics(rows, head_rows, dtype):
    """Every configuration, depths that do not fill a tile, vocabularies of any size."""
    hidden, weight = inputs(rows, 72, head_rows, dtype)
    found, logits = lm_head(hidden, weight, head_rows)
    assert logits is None
    check(found, exact(hidden, weight, head_rows))
    assert torch.equal(found.token, found.argmax)


@pytest.mark.parametrize("vocabulary", [49152, 152064])
def test_statistics_at_full_width(vocabulary):
    """The vocabularies of real pairs, the head's padding masked."""
    hidden, weight = inputs(2, 16, vocabulary)
    weight[-100:] *= 50
    check(lm_head(hidden, weight, vocabulary - 100)[0], exact(hidden, weight, vocabulary - 100))


@pytest.mark.parametrize("store", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [3, 20])
def test_stored_logits(store, rows):
    """All of them are written; the statistics are those of the fp32 sums, to the last digits."""
    hidden, weight = inputs(rows, 128, 300)
    plain, _ = lm_head(hidden, weight, 270)
    found, logits = lm_head(hidden, weight, 270, store=store)
    same_bits(found, plain)
    z = exact(hidden, weight, 300)
    assert logits.shape == (rows, 300) and logits.dtype == store
    torch.testing.assert_close(logits.double(), z, rtol=2 * torch.finfo(store).eps, atol=2e-5)
    if store == torch.float32:
        again = confidence(logits, 270)
        for name in ("argmax", "margin", "max_logit"):
            assert torch.equal(getattr(found, name), getattr(again, name))
        torch.testing.assert_close(found.entropy, again.entropy, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lead", [40.0, 86.9, 87.1, 103.0, 1e4])
def test_log_odds_end_where_the_others_do(lead):
    """At 87, with the second in the tile of the first or in another; inf without a second."""
    hidden = torch.ones(1, 1, device=ON)
    for second in (298, 0, None):
        weight = torch.full((300, 1), -INF, device=ON)
        weight[299] = lead
        if second is not None:
            weight[second] = 0.0
        odds = INF if second is None else min(lead, 87.0)
        found, _ = lm_head(hidden, weight, 300)
        assert float(found.log_odds) == pytest.approx(odds, rel=1e-6)


def test_ties_and_negative_rows():
    """All-equal logits of one id a row of weights: the first wins; very negative rows count too."""
    hidden = torch.tensor([[1.0] * 16, [-100.0] * 16, [0.0] * 16], device=ON)
    weight = torch.ones(400, 16, device=ON)
    found, _ = lm_head(hidden, weight, 390)
    assert found.valid.all() and found.argmax.tolist() == [0, 0, 0]
    assert found.margin.tolist() == [0.0] * 3 and found.max_logit.tolist() == [16.0, -1600.0, 0.0]
    torch.testing.assert_close(found.entropy.cpu(), torch.full((3,), math.log(390)))


def test_unusable_rows_are_flagged_and_alone():
    """NaN and infinities in a hidden state; a tile of nothing but -inf is no harm."""
    hidden, weight = inputs(6, 32, 300, torch.float32)
    plain, _ = lm_head(hidden, weight, 300)
    hidden[1, 3], hidden[4, 0] = math.nan, INF
    found, _ = lm_head(hidden, weight, 300)
    assert found.valid.tolist() == [True, False, True, True, False, True]
    keep = torch.tensor([0, 2, 3, 5], device=ON)
    same_bits(ScoredRows(*(v[keep] for v in found)), ScoredRows(*(v[keep] for v in plain)))
    hidden, weight = hidden[:1].abs() + 0.1, weight.abs()
    weight[:128], weight[200] = -INF, -INF
    found, _ = lm_head(hidden, weight, 300)
    z = exact(hidden, weight, 300)
    assert found.valid.all() and torch.equal(found.argmax, z.argmax(-1))
    weight[:] = -INF
    assert not lm_head(hidden, weight, 300)[0].valid.any()


@pytest.mark.parametrize("rows", [5, 16])
def test_a_row_alone_is_bitwise_the_row_in_a_batch(rows):
    """One configuration serves M <= 16."""
    hidden, weight = inputs(rows, 128, 300)
    together, logits = lm_head(hidden, weight, 300, draws(rows), torch.bfloat16)
    for i in (0, rows - 1):
        draw = draws(rows)
        row = slice(i, i + 1)
        one = DrawRows(draw.temperature[row], draw.key[row], draw.counter[row])
        alone, mine = lm_head(hidden[row].clone(), weight, 300, one, torch.bfloat16)
        same_bits(alone, ScoredRows(*(v[row] for v in together)))
        assert torch.equal(mine, logits[row])


@pytest.mark.parametrize("filters", [{}, {"top_k": 5, "top_p": 0.9}])
@pytest.mark.parametrize("store", [torch.float32, torch.bfloat16])
def test_draws_are_those_from_the_stored_logits(filters, store):
    """The same token, with filters, without, and greedy: tiles of another size race alike."""
    hidden, weight = inputs(6, 64, 300)
    for temperature in (0.0, 1.5):
        draw = draws(6, temperature, **filters)
        found, logits = lm_head(hidden, weight, 290, draw, store)
        again = confidence(logits, 290, draw)
        assert torch.equal(found.token, again.token)
        slack = 1e-4 if store == torch.float32 else 0.1
        torch.testing.assert_close(found.logprob, again.logprob, rtol=0, atol=slack)
        assert (found.logprob <= 0).all()


def test_row_strides_and_empty_batch():
    """Rows may stand apart; no rows need no launch."""
    hidden, weight = inputs(3, 64, 200)
    wide_hidden, wide_weight = torch.zeros(3, 80).to(hidden), torch.zeros(200, 96).to(weight)
    wide_hidden[:, :64], wide_weight[:, :64] = hidden, weight
    expected, _ = lm_head(hidden, weight, 200)
    same_bits(lm_head(wide_hidden[:, :64], wide_weight[:, :64], 200)[0], expected)
    found, logits = lm_head(hidden[:0], weight, 200, store=torch.bfloat16)
    assert logits.shape == (0, 200) and all(v.shape == (0,) for v in found)


def test_outputs_are_fully_written(monkeypatch):
    """Poisoned buffers change nothing."""
    hidden, weight = inputs(4, 64, 300)
    expected, logits = lm_head(hidden, weight, 300, draws(4), torch.bfloat16)
    new_empty = torch.Tensor.new_empty

    def poisoned(*args, **kwargs):
        tensor = new_empty(*args, **kwargs)
        return tensor.fill_(math.nan if tensor.is_floating_point() else 77)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    found, again = lm_head(hidden, weight, 300, draws(4), torch.bfloat16)
    same_bits(found, expected)
    assert torch.equal(again, logits)


def test_configurations():
    """By the number of rows alone."""
    assert [config_of(m) for m in (1, 16, 17, 64, 65, 1000)] == [
        CONFIGS[i] for i in (0, 0, 1, 1, 2, 2)
    ]


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("hidden", {"hidden": torch.zeros(3)}),
        ("hidden", {"hidden": torch.zeros(3, 8, dtype=torch.float64)}),
        ("hidden", {"hidden": torch.zeros(8, 3).t()}),
        ("hidden", {"hidden": torch.zeros(3, 0), "weight": torch.zeros(20, 0)}),
        ("weight", {"weight": torch.zeros(20, 9)}),
        ("weight", {"weight": torch.zeros(8, 20).t()}),
        ("weight", {"weight": torch.zeros(20, 8, dtype=torch.bfloat16)}),
        ("weight", {"weight": torch.zeros(20, 8, device="meta")}),
        ("vocabulary", {"vocabulary": 21}),
        ("vocabulary", {"vocabulary": 0}),
        ("store", {"store": torch.int8}),
        ("store", {"draw": draws(3)}),
        ("draw.temperature", {"draw": draws(2), "store": torch.float32}),
    ],
)
def test_bad_arguments_are_named(name, bad):
    """Before anything is launched."""
    sound = {"hidden": torch.zeros(3, 8), "weight": torch.zeros(20, 8), "vocabulary": 20}
    moved = {
        k: v.to(ON) if isinstance(v, torch.Tensor) and v.device.type == "cpu" else v
        for k, v in (sound | bad).items()
    }
    with pytest.raises(ValueError, match=rf"^{name} must "):
        lm_head(**moved)


@pytest.mark.parametrize(("depth", "head_rows"), [(1536, 151936), (5120, 152064)])
@pytest.mark.parametrize("rows", [pytest.param(m, marks=gpu) for m in (1, 16, 64, 200)])
def test_on_a_gpu_at_real_shapes(rows, depth, head_rows):
    """The heads of Qwen2.5-1.5B and 32B, and rows alone bitwise those of a batch of 16."""
    hidden, weight = inputs(rows, depth, head_rows, scale=4 * depth**-0.5)
    found, _ = lm_head(hidden, weight, 151665)
    check(found, exact(hidden, weight, 151665), slack=depth / 1536)
    if rows == 16:
        for i in (0, 15):
            alone, _ = lm_head(hidden[i : i + 1].clone(), weight, 151665)
            same_bits(alone, ScoredRows(*(v[i : i + 1] for v in found)))


@pytest.mark.parametrize("mark", [pytest.param(0, marks=gpu)])
def test_on_a_gpu_a_replayed_graph_is_bitwise_eager(mark):
    """With new hidden states in the captured buffer."""
    hidden, weight = inputs(8, 1536, 151936, scale=0.1)
    draw = draws(8, top_p=0.9)
    lm_head(hidden, weight, 151936, draw, torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured, _ = lm_head(hidden, weight, 151936, draw, torch.bfloat16)
    hidden.copy_(torch.randn_like(hidden) * 0.1)
    graph.replay()
    same_bits(captured, lm_head(hidden, weight, 151936, draw, torch.bfloat16)[0])
