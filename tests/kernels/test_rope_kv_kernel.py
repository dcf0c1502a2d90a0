"""Bias, norms, rotation and KV writes on Triton against fp64; copies of blocks to the bit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from kernels import copy_blocks, rope_kv
from kernels.aot import copy_blocks as copy_blocks_gates
from kernels.aot import rope_kv as rope_kv_gates
from kernels.reference import attention, layers
from kernels.types.attention import AttentionPlan, KVLayout

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
LAYER, LENGTH, EPS = 1, 50, 1e-5
# Half a unit of the last place; the interpreter cuts bf16 off instead of rounding it: a whole one.
ROUNDED = {torch.float32: 1e-6, torch.bfloat16: 2**-8 if GPU else 2**-7, torch.float16: 2**-11}


def integers(values):
    """int32 on the device."""
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


@dataclass
class Case:
    """A batch, an arena that is NaN everywhere, and places in it."""

    layout: KVLayout
    heads: int
    qkv: torch.Tensor
    bias: torch.Tensor | None
    norms: tuple[torch.Tensor, torch.Tensor] | None
    rope: torch.Tensor
    positions: list[int]
    slots: list[int]
    arena: torch.Tensor

    def run(self, **changes):
        """Rotated queries; the arena is written."""
        arguments = {
            "qkv": self.qkv,
            "bias": self.bias,
            "rope": self.rope,
            "arena": self.arena,
            "layout": self.layout,
            "layer": LAYER,
            "norms": self.norms,
            "eps": EPS,
        } | changes
        for name in ("positions", "slots"):  # copied from host memory, which no recording may do
            if name not in changes:
                arguments[name] = integers(getattr(self, name))
        if "out" not in changes:
            shape = len(self.qkv), self.heads, self.layout.head_dim
            arguments["out"] = self.qkv.new_full(shape, torch.nan)
        return rope_kv.rope_kv(**arguments)

    def expected(self):
        """Queries, keys and values [rows, heads, head_dim] in fp64."""
        x = self.qkv.cpu().double()
        if self.bias is not None:
            x = x + self.bias.cpu().double()
        kv_heads = self.layout.kv_heads
        x = x.view(len(x), -1, self.layout.head_dim)
        query, key, value = x.split([self.heads, kv_heads, kv_heads], 1)
        if self.norms:
            query, key = (
                y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS) * weight.cpu().double()
                for y, weight in zip((query, key), self.norms, strict=True)
            )
        cosine, sine = self.rope.cpu().double()[:, self.positions, None]
        query, key = (layers.apply_rope(y, cosine, sine) for y in (query, key))
        return query, key, value

    def check(self):
        """Queries, and the whole arena: rows at their places, NaN everywhere else."""
        found = self.run()
        query, key, value = self.expected()
        arena = torch.full(self.arena.shape, torch.nan, dtype=torch.float64)
        layout, page = self.layout, self.layout.block_tokens
        for row, slot in enumerate(self.slots):
            if slot < 0:
                continue
            first = int(layout.first_row(torch.tensor(slot // page))) + slot % page
            first += 2 * LAYER * layout.plane_rows
            for head in range(layout.kv_heads):
                arena[first + head * page] = key[row, head]
                arena[first + layout.plane_rows + head * page] = value[row, head]
        for mine, wanted in ((found, query), (self.arena, arena)):
            torch.testing.assert_close(
                mine.cpu().double(), wanted, equal_nan=True, rtol=ROUNDED[self.qkv.dtype], atol=1e-6
            )


def make(
    rows=5,
    *,
    group=3,
    kv_heads=2,
    head_dim=32,
    page=16,
    dtype=torch.float32,
    bias=True,
    norms=False,
    slots=3,
    padding=0,
    seed=0,
):
    """Rows at random positions and places."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw).to(dtype).to(DEVICE)

    block_rows = 2 * 2 * kv_heads * page
    layout = KVLayout(2, kv_heads, head_dim, page, slots, slots * block_rows + 7)
    blocks = 4 * slots
    arena = torch.full((4 * layout.slab_rows, head_dim), torch.nan, dtype=dtype, device=DEVICE)
    columns = (group + 2) * kv_heads * head_dim
    places = torch.randperm(blocks * page, generator=draw)[:rows].tolist()
    return Case(
        layout,
        group * kv_heads,
        normal(rows, columns),
        normal(columns) if bias else None,
        (normal(head_dim), normal(head_dim)) if norms else None,
        layers.rope_tables(LENGTH, head_dim, 1e4, torch.float32).to(DEVICE),
        torch.randint(LENGTH, (rows,), generator=draw).tolist(),
        [*places[: rows - padding], *[-1] * padding],
        arena,
    )


class TestRope:
    @pytest.mark.parametrize("dtype", list(ROUNDED))
    @pytest.mark.parametrize("norms", [False, True])
    def test_values(self, dtype, norms):
        make(dtype=dtype, norms=norms, bias=not norms).check()

    @pytest.mark.parametrize("page", [4, 16, 64])
    def test_pages(self, page):
        make(page=page, rows=7).check()

    @pytest.mark.parametrize("group", [1, 2, 5, 6, 7])
    def test_group_sizes(self, group):
        make(group=group, rows=2).check()

    @pytest.mark.parametrize("head_dim", [16, 64, 128])
    def test_head_sizes(self, head_dim):
        make(head_dim=head_dim, rows=3, kv_heads=3).check()

    def test_many_heads_take_several_programs(self):
        make(group=5, kv_heads=8, head_dim=128, rows=2, norms=True).check()

    def test_plain_projection(self):
        make(bias=False).check()

    def test_bias_and_norms(self):
        make(norms=True, bias=True).check()

    def test_padding_rows_write_no_keys(self):
        make(rows=4, padding=2).check()

    def test_nothing_to_do(self):
        assert make(rows=0).run().shape == (0, 6, 32)

    def test_equals_the_reference(self):
        case = make()
        table = case.rope[:, case.positions, None].cpu()
        x = (case.qkv + case.bias).cpu().view(5, -1, 32)
        query, key, value = x.split([6, 2, 2], 1)
        slots = torch.tensor(case.slots)
        plan = AttentionPlan.build(
            case.layout, torch.tensor([0, 5]), torch.tensor([5]), torch.zeros(1, 1).long(), slots
        )
        arena = case.arena.cpu().clone()
        attention.write_kv(arena, plan, LAYER, layers.apply_rope(key, *table), value)
        found = case.run()
        torch.testing.assert_close(found.cpu(), layers.apply_rope(query, *table))
        torch.testing.assert_close(case.arena.cpu(), arena, equal_nan=True)

    def test_roofline(self):
        case = make()
        assert (
            rope_kv_gates.roofline(case.layout, 6, 5).bytes
            == 2 * 5 * 320 * 2 + 320 * 2 + 5 * 32 * 4
        )


BAD = [
    ("qkv must be bfloat16", lambda c: {"qkv": c.qkv.double()}),
    ("qkv must have .* columns", lambda c: {"qkv": c.qkv[:, :-32].contiguous()}),
    ("qkv must be contiguous", lambda c: {"qkv": c.qkv.repeat(1, 2)[:, ::2]}),
    ("bias must have shape", lambda c: {"bias": c.bias[:-1]}),
    ("bias must be float32", lambda c: {"bias": c.bias.half()}),
    ("rope must be float32", lambda c: {"rope": c.rope.half()}),
    ("rope must have shape", lambda c: {"rope": c.rope[0]}),
    ("positions must be int32", lambda c: {"positions": integers(c.positions).long()}),
    ("slots must have shape", lambda c: {"slots": integers(c.slots[1:])}),
    ("arena must have shape", lambda c: {"arena": c.arena.view(-1, 16)}),
    ("arena must be on", lambda c: {"arena": torch.empty(c.arena.shape, device="meta")}),
    ("layer must be in 0..1", lambda c: {"layer": -1}),
    ("layout.head_dim", lambda c: {"layout": replace(c.layout, head_dim=20)}),
    ("layout.slab_rows", lambda c: {"layout": replace(c.layout, slab_rows=9)}),
    ("norms.0. must have shape", lambda c: {"norms": (c.bias, c.bias[:32])}),
    ("out must have shape", lambda c: {"out": c.qkv}),
    ("eps must be 0 or more", lambda c: {"eps": -1e-6}),
    ("arena must be contiguous", lambda c: {"arena": c.arena.repeat(1, 2)[:, ::2]}),
    ("layout.block_tokens", lambda c: {"layout": replace(c.layout, block_tokens=24)}),
    ("positions must have shape", lambda c: {"positions": integers(c.positions[1:])}),
    ("bias must be on", lambda c: {"bias": torch.empty(c.bias.shape, device="meta")}),
]


@pytest.mark.parametrize(("message", "change"), BAD, ids=[message for message, _ in BAD])
def test_wrong_arguments_are_named(message, change):
    case = make()
    with pytest.raises(ValueError, match=message):
        case.run(**change(case))
    assert case.arena.isnan().all()


class TestCopies:
    PAIRS = ((0, 5), (3, 7), (-1, 2), (4, 4), (0, 11))

    @pytest.mark.parametrize("dtype", list(ROUNDED))
    @pytest.mark.parametrize("kv_heads", [2, 24])
    def test_blocks_land_to_the_bit_and_nowhere_else(self, dtype, kv_heads):
        case = make(dtype=dtype, kv_heads=kv_heads)
        case.arena.view(torch.uint8).random_(generator=torch.Generator(DEVICE).manual_seed(0))
        before = case.arena.clone()
        expected = before.clone().cpu()
        real = [pair for pair in self.PAIRS if pair[0] >= 0]
        attention.copy_blocks(expected, case.layout, torch.tensor(real))
        copy_blocks.copy_blocks(case.arena, case.layout, integers(self.PAIRS))
        bits = [x.cpu().view(torch.uint8) for x in (case.arena, expected, before)]
        assert torch.equal(bits[0], bits[1])
        assert not torch.equal(bits[0], bits[2])

    def test_no_pairs(self):
        case = make()
        copy_blocks.copy_blocks(case.arena, case.layout, integers([]).view(0, 2))
        assert case.arena.isnan().all()

    @pytest.mark.parametrize(
        ("message", "change"),
        [
            ("arena must have shape", lambda c: {"arena": c.arena.view(-1, 16)}),
            ("arena must be bfloat16", lambda c: {"arena": c.arena.double()}),
            ("copies must have shape", lambda c: {"copies": integers([1, 2, 3]).view(1, 3)}),
            ("copies must be int32", lambda c: {"copies": integers([[0, 1]]).long()}),
            ("copies must be on", lambda c: {"copies": torch.zeros(1, 2, device="meta").int()}),
            ("copies must be contiguous", lambda c: {"copies": integers([[0], [1]]).expand(2, 2)}),
            ("arena must be contiguous", lambda c: {"arena": c.arena.repeat(1, 2)[:, ::2]}),
            ("layout.block_tokens", lambda c: {"layout": replace(c.layout, block_tokens=24)}),
            (
                "layout.head_dim",
                lambda c: {
                    "arena": c.arena.half().view(-1, 4),
                    "layout": replace(c.layout, head_dim=4),
                },
            ),
            ("layout.slab_rows", lambda c: {"layout": replace(c.layout, slots=9)}),
        ],
    )
    def test_wrong_arguments_are_named(self, message, change):
        case = make()
        arguments = {"arena": case.arena, "layout": case.layout, "copies": integers([[0, 1]])}
        with pytest.raises(ValueError, match=message):
            copy_blocks.copy_blocks(**(arguments | change(case)))

    def test_roofline(self):
        case = make()
        assert copy_blocks_gates.roofline(case.layout, 3).bytes == 2 * 3 * 128 * 32 * 2


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs an NVIDIA GPU")
class TestDevice:
    @pytest.mark.parametrize(("group", "kv_heads"), [(6, 2), (5, 8)])  # of 1.5B and 32B
    @pytest.mark.parametrize("rows", [1, 64, 300])
    @pytest.mark.parametrize("norms", [False, True])  # Qwen2's bias, Qwen3's norms
    def test_values_at_real_shapes(self, group, kv_heads, rows, norms):
        make(
            rows,
            group=group,
            kv_heads=kv_heads,
            head_dim=128,
            page=64,
            dtype=torch.bfloat16,
            norms=norms,
            bias=not norms,
        ).check()

    def test_graph_replay_is_eager(self):
        case = make(64, group=6, head_dim=128, page=64, dtype=torch.bfloat16)
        positions, slots = integers(case.positions), integers(case.slots)
        out = torch.zeros(64, 12, 128, dtype=torch.bfloat16, device=DEVICE)
        eager = case.run(positions=positions, slots=slots).clone()
        arena = case.arena.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            case.run(positions=positions, slots=slots, out=out)
        case.arena.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, eager)
        assert torch.equal(case.arena.view(torch.uint8), arena.view(torch.uint8))
