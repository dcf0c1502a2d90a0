"""RMSNorm kernels against fp64, and against the reference's rounding."""

from __future__ import annotations

import pytest
import torch

from kernels import norm
from kernels.reference import layers

EPS = 1e-6
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Relative to the result: fp32 sums, or one rounding of the type before the weight and one after.
# Triton's interpreter does not round to bf16, it truncates: twice the error.
ROUNDED = 2.0**-8 if DEVICE == "cuda" else 2.0**-7
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2 * ROUNDED, torch.float16: 2.0**-10}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator)).to(dtype).to(DEVICE)


def oracle(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    return weight.double() * wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("hidden", [1, 17, 896, 1000])
def test_rms_norm(hidden: int, dtype: torch.dtype):
    x, weight = random(3, hidden, dtype=dtype), random(hidden, dtype=dtype, seed=1)
    assert_close(norm.rms_norm(x, weight, EPS), oracle(x, weight))


@pytest.mark.parametrize("hidden", [5120, 16384])
def test_wide_rows(hidden: int):
    x, weight = random(2, hidden, dtype=torch.bfloat16), random(hidden, dtype=torch.bfloat16)
    assert_close(norm.rms_norm(x, weight, EPS), oracle(x, weight))


def check_addition(rows: int, hidden: int, dtype: torch.dtype) -> None:
    x, residual = random(rows, hidden, dtype=dtype), random(rows, hidden, dtype=dtype, seed=1)
    weight = random(hidden, dtype=dtype, seed=2)
    total = x + residual
    found = norm.add_rms_norm(x, residual, weight, EPS)
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        torch.testing.assert_close(x, total, rtol=ROUNDED, atol=0)
    else:
        assert torch.equal(x, total)  # written back, rounded as torch rounds
    assert_close(found, oracle(x, weight))  # of what was written


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_add_rms_norm(dtype: torch.dtype):
    check_addition(3, 1536, dtype)


def test_rounds_like_the_reference():
    x, weight = random(8, 896, dtype=torch.float16), random(896, dtype=torch.float16, seed=1)
    same = norm.rms_norm(x, weight, EPS) == layers.rms_norm(x, weight, EPS)
    assert same.float().mean() > 0.999  # but for ties that the order of fp32 sums decides


def test_heads_of_a_fused_projection():
    fused = random(5, 8 * 64)
    heads, weight = fused.view(5, 8, 64)[:, 2:5], random(64, seed=1)
    found = norm.rms_norm(heads, weight, EPS)
    assert found.is_contiguous()
    assert_close(found, oracle(heads, weight))


def test_zero_row_and_large_values():
    x = torch.stack([torch.zeros(64), torch.full((64,), 1e15)]).to(DEVICE)
    found = norm.rms_norm(x, torch.ones(64, device=DEVICE), EPS)
    assert found[0].eq(0).all()
    torch.testing.assert_close(found[1], torch.ones(64, device=DEVICE))


def test_rows_are_independent():
    x, weight = random(5, 896, dtype=torch.bfloat16), random(896, dtype=torch.bfloat16)
    together = norm.rms_norm(x, weight, EPS)
    assert all(
        torch.equal(together[i], norm.rms_norm(x[i : i + 1], weight, EPS)[0]) for i in (0, 4)
    )


def test_writes_all_and_nothing_else(monkeypatch):
    buffer = torch.full((4, 100), float("nan"), device=DEVICE)
    monkeypatch.setattr(norm.torch, "empty", lambda *_, **__: buffer[1:3])
    norm.rms_norm(random(2, 100), torch.ones(100, device=DEVICE), EPS)
    assert buffer[1:3].isfinite().all()
    assert buffer[[0, 3]].isnan().all()


def test_empty_batch():
    weight = torch.ones(64, device=DEVICE)
    assert norm.rms_norm(random(0, 64), weight, EPS).shape == (0, 64)
    assert norm.add_rms_norm(random(0, 64), random(0, 64), weight, EPS).shape == (0, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(8)}, "x must be"),
        ({"x": torch.ones(2, 16385)}, "x must have 1 to 16384 columns, got 16385"),
        ({"x": torch.ones(2, 8, dtype=torch.float64)}, "x must be float32 or"),
        ({"x": torch.ones(8, 2).T}, "x must be contiguous"),
        ({"residual": torch.ones(2, 7)}, "residual must have shape"),
        ({"residual": torch.ones(2, 8).half()}, "residual must be float32, got float16"),
        ({"weight": torch.ones(7)}, "weight must have shape"),
        ({"weight": torch.ones(8).bfloat16()}, "weight must be float32"),
        ({"weight": torch.ones(8, device="meta")}, "weight must be on"),
        ({"eps": -1.0}, "eps must be 0 or more"),
    ],
)
def test_bad_input(change: dict, message: str):
    good = {"x": torch.ones(2, 8), "residual": torch.ones(2, 8), "weight": torch.ones(8)}
    moved = {
        name: value.to(DEVICE) if isinstance(value, torch.Tensor) and not value.is_meta else value
        for name, value in {**good, "eps": EPS, **change}.items()
    }
    with pytest.raises(ValueError, match=message):
        norm.add_rms_norm(**moved)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("hidden", [896, 1536, 5120, 8192])
def test_graph_replay_is_eager(hidden: int):
    x, weight = random(64, hidden, dtype=torch.bfloat16), random(hidden, dtype=torch.bfloat16)
    eager = norm.rms_norm(x, weight, EPS)
    assert_close(eager, oracle(x, weight))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = norm.rms_norm(x, weight, EPS)
    captured.fill_(float("nan"))
    graph.replay()
    assert torch.equal(captured, eager)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 64])
def test_add_rms_norm_at_the_width_of_32b(rows: int, dtype: torch.dtype):
    check_addition(rows, 5120, dtype)
