"""Short lists for filtered draws: they hold all that a row's filters keep, or nothing."""

from __future__ import annotations

import pytest
import torch

from kernels import candidates
from kernels.confidence import confidence
from kernels.reference import sampling
from kernels.types.sampling import DrawRows

ON = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
WIDTH, VOCABULARY = 3008, 3003
# temperature, top_k, top_p, min_p; whether a list of 200 suffices for `logits`
SETTINGS = [
    ((1.0, 20, 1.0, 0.0), True),
    ((1.0, 0, 0.9, 0.0), True),
    ((0.3, 20, 0.95, 0.0), True),
    ((1.0, 0, 1.0, 0.1), True),
    ((2.0, 3, 0.5, 0.2), True),
    ((1.0, 0, 1.0 - 1e-9, 0.0), False),  # all but nothing
    ((5.0, 0, 0.9, 0.0), False),  # too flat
    ((1.0, 300, 1.0, 0.0), False),  # too many
    ((1.0, 0, 1.0, 1e-9), False),  # too far
    ((0.0, 3, 0.5, 0.0), False),  # greedy: none is made
]


def logits(rows: int, dtype: torch.dtype) -> torch.Tensor:
    """A few tokens in front of many, with ties; past the vocabulary anything."""
    torch.manual_seed(0)
    z = torch.randn(rows, WIDTH) - 9
    z[:, ::30] += (torch.rand(rows, 101) * 80).round() / 8
    z[:, 1000:1700] = -torch.inf
    z[:, VOCABULARY:] = 1e4
    return z.to(dtype)


def draws(settings: list[tuple[float, int, float, float]]) -> DrawRows:
    temperature, top_k, top_p, min_p = zip(*settings, strict=True)
    rows = len(settings)
    return DrawRows.on(
        ON,
        temperature=temperature,
        key=range(rows),
        counter=torch.arange(3 * rows).view(rows, 3),
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
    )


def expected(z: torch.Tensor, draw: DrawRows) -> torch.Tensor:
    columns = {name: column.cpu() for name, column in vars(draw).items()}
    return sampling.sample(z, VOCABULARY, DrawRows(**columns))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_draws_from_lists_and_from_rows_are_the_references(dtype: torch.dtype, monkeypatch):
    """Rows with a list, rows without one, and all rows without one."""
    made = []
    gather = candidates.gather
    monkeypatch.setattr(candidates, "MOST", 200)
    monkeypatch.setattr(candidates, "gather", lambda *a: made.append(gather(*a)) or made[-1])
    settings = [setting for setting, _ in SETTINGS]
    draw, z = draws(settings), logits(len(settings), dtype)
    wanted = expected(z, draw)
    assert torch.equal(confidence(z.to(ON), VOCABULARY, draw).token.cpu(), wanted)
    lists = made[-1]
    for row, (setting, short) in enumerate(SETTINGS):
        if setting[0] > 0:
            assert (int(lists.sizes[row]) > 0) == short, setting
    for row in range(5):
        size = int(lists.sizes[row])
        ids = lists.ids[row, :size].long().cpu()
        assert (ids.diff() > 0).all() and ids[-1] < VOCABULARY
        assert torch.equal(lists.values[row, :size].cpu(), z[row, ids].float())
        left = torch.ones(VOCABULARY, dtype=torch.bool)
        left[ids] = False
        assert z[row, :VOCABULARY][left].max() < lists.values[row, :size].min()
    monkeypatch.setattr(candidates, "MOST", 1)
    draw, z = draws(settings[:5]), z[:5]
    assert torch.equal(confidence(z.to(ON), VOCABULARY, draw).token.cpu(), wanted[:5])
    assert (made[-1].sizes == 0).all()


def test_other_logits_have_lists_of_their_own():
    """What is drawn from decides; statistics are of something else."""
    draw = draws([setting for setting, _ in SETTINGS[:5]])
    z = logits(5, torch.float32)
    other = z.flip(1).roll(-(WIDTH - VOCABULARY), 1).contiguous()
    found = confidence(other.to(ON), VOCABULARY, draw, source=z.to(ON))
    assert torch.equal(found.token.cpu(), expected(z, draw))


def test_draws_without_filters_need_no_list(monkeypatch):
    """Beside rows that have one: theirs stays empty, and without any nothing is launched."""
    made = []
    gather = candidates.gather
    monkeypatch.setattr(candidates, "gather", lambda *a: made.append(gather(*a)) or made[-1])
    draw = draws([(1.0, 0, 1.0, 0.0), (1.0, 5, 1.0, 0.0), (8.0, 0, 1.0, 0.0)])
    z = logits(3, torch.float32)
    wanted = expected(z, draw)
    assert torch.equal(confidence(z.to(ON), VOCABULARY, draw).token.cpu(), wanted)
    assert int(made[-1].sizes[1]) > 0
    plain = DrawRows(draw.temperature, draw.key, draw.counter)
    assert torch.equal(confidence(z.to(ON), VOCABULARY, plain).token.cpu()[::2], wanted[::2])
    assert len(made) == 1
