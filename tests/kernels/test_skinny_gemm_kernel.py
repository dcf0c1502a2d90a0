"""The linear layer of few rows against fp64; a row alone = the row in a batch, bitwise."""

from __future__ import annotations

import pytest
import torch

from kernels import norm, ops, silu_mul, skinny_gemm
from kernels.backends.triton import TritonBackend
from kernels.reference import layers
from kernels.skinny_config import NARROW_BYTES
from kernels.skinny_gemm import FP8, plan, skinny_linear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKEND = TritonBackend(torch.device(DEVICE))
# Triton's interpreter does not round to bf16, it truncates.
ROUNDED = 2.0**-8 if DEVICE == "cuda" else 2.0**-7
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: ROUNDED, torch.float16: 2.0**-11}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(DEVICE)


def fp8(n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    weight = random(n, k)
    scale = weight.abs().amax(1) / 448
    return (weight / scale[:, None]).to(FP8), scale


def assert_right(
    found: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> None:
    wide = weight.double() if scale is None else weight.double() * scale.double()[:, None]
    expected = x.double() @ wide.T + (0 if bias is None else bias.double())
    # fp32 sums err by a share of what was added, not of what is left after cancellation.
    added = x.double().abs() @ wide.abs().T
    error = (found.double() - expected).abs()
    assert (error <= 1e-6 * added + ROUNDING[found.dtype] * expected.abs()).all()


# N and K with tails; narrow and wide tiles; one split and several.
SHAPES = [(1, 1), (40, 100), (48, 896), (130, 2500)]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_values(n: int, k: int, dtype: torch.dtype):
    x, weight = random(3, k, dtype=dtype), random(n, k, dtype=dtype, seed=1)
    bias = random(n, dtype=dtype, seed=2)
    assert_right(skinny_linear(x, weight), x, weight)
    assert_right(skinny_linear(x, weight, bias), x, weight, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "k"), [(48, 896), (70, 2500)])
def test_fp8_weights(n: int, k: int, dtype: torch.dtype):
    x, bias = random(2, k, dtype=dtype), random(n, dtype=dtype, seed=2)
    weight, scale = fp8(n, k)
    assert_right(skinny_linear(x, weight, None, scale), x, weight, None, scale)
    assert_right(skinny_linear(x, weight, bias, scale), x, weight, bias, scale)


def test_every_fp8_value():
    """Each code of e4m3 but its two NaNs, subnormals included, passes exactly."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[(codes & 127) != 127].to(DEVICE)
    weight = codes.view(FP8)[:, None].repeat(1, 1)
    scale = torch.full((len(codes),), 0.5, device=DEVICE)
    x = torch.ones(1, 1, dtype=torch.bfloat16, device=DEVICE)
    found = skinny_linear(x, weight, None, scale)[0].float()
    assert torch.equal(found, weight[:, 0].float() * 0.5)


def test_the_shapes_above_split_and_do_not():
    assert plan(48, 896, 2).splits == 1
    assert plan(130, 2500, 2).splits > 1
    assert plan(70, 2500, 1).splits > 1
    assert plan(48, 896, 1).config is NARROW_BYTES


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (1536, 8960), (5120, 27648), (896, 4864), (7, 2049)])
def test_plans_cover_k(n: int, k: int, size: int):
    chosen = plan(n, k, size)
    covered = chosen.splits * chosen.blocks_per_split * chosen.config.block_k
    assert covered >= k  # all of it
    assert covered - chosen.blocks_per_split * chosen.config.block_k < k  # and no split is empty


@pytest.mark.parametrize(("n", "k"), [(48, 896), (80, 2304)])
def test_a_row_alone_is_the_row_in_any_batch(n: int, k: int):
    x, weight = random(16, k, dtype=torch.bfloat16), random(n, k, dtype=torch.bfloat16, seed=1)
    together = skinny_linear(x, weight)
    for m in range(1, 16):
        assert torch.equal(skinny_linear(x[:m], weight), together[:m])
    assert torch.equal(skinny_linear(x[11:12], weight)[0], together[11])


def test_strided_rows():
    wide, weight = random(4, 200), random(24, 64, seed=1)
    assert_right(skinny_linear(wide[:, 100:164], weight), wide[:, 100:164], weight)


@pytest.mark.parametrize(("n", "k"), [(33, 64), (33, 2500)])
def test_writes_all_and_nothing_else(n: int, k: int, monkeypatch):
    made = []

    def poisoned(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, **_: object):
        count = torch.Size(shape).numel()
        made.append((torch.full((count + 64,), float("nan"), dtype=dtype, device=DEVICE), count))
        return made[-1][0][32 : 32 + count].view(shape)

    x, weight = random(5, k), random(n, k, seed=1)
    monkeypatch.setattr(skinny_gemm.torch, "empty", poisoned)
    skinny_linear(x, weight)
    assert len(made) == (2 if plan(n, k, 4).splits > 1 else 1)
    for buffer, count in made:
        assert buffer[32 : 32 + count].isfinite().all()
        assert buffer[:32].isnan().all()
        assert buffer[32 + count :].isnan().all()


def test_nan_stays_in_its_row():
    x, weight = random(3, 100), random(20, 100, seed=1)
    x[1, 7] = float("nan")
    found = skinny_linear(x, weight)
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()


def test_empty_batch():
    assert skinny_linear(random(0, 64), random(8, 64)).shape == (0, 8)


def test_more_rows_than_the_kernel_takes_go_to_torch():
    x, weight, bias = random(17, 64), random(8, 64, seed=1), random(8, seed=2)
    assert torch.equal(BACKEND.linear(x, weight, bias), layers.linear(x, weight, bias))
    small = BACKEND.linear(x[:16], weight, bias)
    assert torch.equal(small, skinny_linear(x[:16], weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_with_scales(dtype: torch.dtype):
    x, bias = random(20, 96, dtype=dtype), random(8, dtype=dtype, seed=2)
    weight, scale = fp8(8, 96)
    wide = weight.double() * scale.double()[:, None]
    expected = x.double() @ wide.T + bias.double()
    rounding = 1e-5 if dtype == torch.float32 else 2.0**-6
    found = layers.linear(x, weight, bias, scale)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=rounding)


def moved(arguments: dict) -> dict:
    """To where kernels run, but for what is meant to be elsewhere."""
    return {
        name: value if value is None or value.is_meta else value.to(DEVICE)
        for name, value in arguments.items()
    }


GOOD = {"x": torch.ones(2, 8), "weight": torch.ones(3, 8)}
EIGHT = {"weight": torch.ones(3, 8).to(FP8), "scale": torch.ones(3)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(17, 8)}, "x must have at most 16 rows, got 17"),
        ({"x": torch.ones(8)}, "x must have shape"),
        ({"x": torch.ones(2, 8).double()}, "x must be float32 or"),
        ({"x": torch.ones(8, 2).T}, "x must have stride 1"),
        ({"weight": torch.ones(3, 9)}, r"weight must have shape \[\*, 8\]"),
        ({"weight": torch.ones(3, 8).half()}, "weight must be float32 or float8_e4m3fn"),
        ({"weight": torch.ones(8, 3).T}, "weight must be contiguous"),
        ({"weight": torch.ones(0, 8)}, "weight must not be empty"),
        ({"weight": torch.ones(3, 8, device="meta")}, "weight must be on"),
        ({"bias": torch.ones(4)}, r"bias must have shape \[3\]"),
        ({"bias": torch.ones(3).half()}, "bias must be float32"),
        ({"scale": torch.ones(3)}, "scale must be given with fp8 weights, and only"),
        ({**EIGHT, "scale": None}, "scale must be given with fp8 weights, and only"),
        ({**EIGHT, "scale": torch.ones(3).half()}, "scale must be float32"),
    ],
)
def test_bad_input(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        skinny_linear(**moved({**GOOD, **change}))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
    ("n", "k"), [(2048, 1536), (1536, 8960), (17920, 1536), (7168, 5120), (5120, 27648)]
)
def test_real_shapes(n: int, k: int):
    x, weight = random(16, k, dtype=torch.bfloat16), random(n, k, dtype=torch.bfloat16, seed=1)
    together = skinny_linear(x, weight)
    assert_right(together, x, weight)
    for m in (1, 2, 7, 15):
        assert torch.equal(skinny_linear(x[:m], weight), together[:m])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = skinny_linear(x, weight)
    captured.fill_(float("nan"))
    graph.replay()
    assert torch.equal(captured, together)
    narrow, scale = fp8(n, k)
    assert_right(skinny_linear(x, narrow, None, scale), x, narrow, None, scale)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_face_picks_the_kernels():
    x, weight = random(4, 256, dtype=torch.bfloat16), random(512, 256, dtype=torch.bfloat16)
    face = ops.backend_for(torch.device(DEVICE))
    assert torch.equal(face.linear(x, weight), skinny_linear(x, weight))
    assert torch.equal(face.silu_mul(x), silu_mul.silu_mul(x))
    assert torch.equal(face.rms_norm(x, x[0], 1e-6), norm.rms_norm(x, x[0], 1e-6))
