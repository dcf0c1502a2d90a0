"""The gated activation's kernel against fp64."""

from __future__ import annotations

import pytest
import torch

from kernels import silu_mul as module
from kernels.silu_mul import silu_mul

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter does not round to bf16, it truncates.
ROUNDED = 2.0**-8 if DEVICE == "cuda" else 2.0**-7
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: ROUNDED, torch.float16: 2.0**-10}


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (4 * torch.randn(shape, generator=generator)).to(dtype).to(DEVICE)


def assert_right(found: torch.Tensor, gate_up: torch.Tensor) -> None:
    gate, up = gate_up.double().chunk(2, -1)
    expected = gate * torch.sigmoid(gate) * up
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [1, 100, 1024, 2500])
def test_values(width: int, dtype: torch.dtype):
    gate_up = random(3, 2 * width, dtype=dtype)
    assert_right(silu_mul(gate_up), gate_up)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_extremes():
    gate = torch.tensor([-1e4, -100.0, -0.0, 0.0, 100.0, 1e4], device=DEVICE)
    found = silu_mul(torch.cat([gate, torch.ones_like(gate)])[None])[0]
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0, 100.0, 1e4], device=DEVICE)
    torch.testing.assert_close(found, expected)


def test_strided_rows_and_a_row_alone():
    wide = random(4, 96, dtype=torch.bfloat16)
    together = silu_mul(wide[:, 16:80])
    assert_right(together, wide[:, 16:80])
    assert torch.equal(silu_mul(wide[2:3, 16:80])[0], together[2])


def test_writes_all_and_nothing_else(monkeypatch):
    buffer = torch.full((4, 100), float("nan"), device=DEVICE)
    monkeypatch.setattr(module.torch, "empty", lambda *_, **__: buffer[1:3])
    silu_mul(random(2, 200))
    assert buffer[1:3].isfinite().all()
    assert buffer[[0, 3]].isnan().all()


def test_empty_batch():
    assert silu_mul(random(0, 64)).shape == (0, 32)


@pytest.mark.parametrize(
    ("gate_up", "message"),
    [
        (torch.ones(8), "gate_up must have shape"),
        (torch.ones(2, 7), "gate_up must have an even number of columns above 0, got 7"),
        (torch.ones(2, 0), "gate_up must have an even number"),
        (torch.ones(2, 8).long(), "gate_up must be float32 or"),
        (torch.ones(8, 2).T, "gate_up must have stride 1"),
    ],
)
def test_bad_input(gate_up: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        silu_mul(gate_up.to(DEVICE))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("width", [4864, 8960, 27648])
@pytest.mark.parametrize("rows", [1, 64])
def test_real_widths(rows: int, width: int):
    gate_up = random(rows, 2 * width, dtype=torch.bfloat16)
    assert_right(silu_mul(gate_up), gate_up)
