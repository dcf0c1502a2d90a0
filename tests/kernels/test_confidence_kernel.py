"""The confidence kernels: statistics and scores against fp64, and bad input.

Without a GPU the kernels run in Triton's interpreter.
"""

from __future__ import annotations

import math

import pytest
import torch

from kernels import confidence as module
from kernels.confidence import confidence, score
from kernels.types.sampling import DrawRows
from tests.kernels.drawn_rows import (
    BACKEND,
    CPU,
    INF,
    INVALID,
    ON,
    SETTINGS,
    all_kinds,
    check,
    draws,
    gpu,
    oracle,
    same_bits,
)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
WIDTHS = (1, 127, 128, 49152, 151936, 152064)


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
    columns = ("temperature", "key", "counter", "top_k", "top_p", "min_p")
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
        ("draw.key", {"draw": changed(key=torch.zeros(2, dtype=torch.int64))}),
        ("draw.counter", {"draw": changed(counter=torch.zeros(3, 4, dtype=torch.int64))}),
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
    sound = {"temperature": [1.0], "key": [0], "counter": [[0] * 3]}
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
