"""Paged attention on Triton against attention spelled out in fp64, sequence by sequence."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from kernels.aot.attention import roofline
from kernels.attention import paged_attention
from kernels.attention_config import Split, Splits, Work
from kernels.reference import attention as reference
from kernels.types.attention import AttentionPlan
from tests.kernels.attention_cases import DEVICE, GPU, LAYER, TOLERANCE, integers, make


class TestValues:
    @pytest.mark.parametrize(
        ("group", "dtype"), [(3, torch.bfloat16), (5, torch.float32), (6, torch.float16)]
    )
    def test_all_kinds_of_spans_in_one_batch(self, group, dtype):
        make([1, 2, 7, 64, 66], [40, 21, 33, 70, 90], group=group, dtype=dtype).check()

    @pytest.mark.parametrize("page", [4, 16, 64])
    def test_pages(self, page):
        splits = Splits(Split(64, 4), Split(64, 2))
        make([1, 3, 65], [70, 68, 130], page=page, slots=2).check(splits=splits)

    @pytest.mark.parametrize("group", [1, 2, 7, 16])
    def test_group_sizes(self, group):
        make([1, 5], [20, 37], group=group).check()

    def test_several_kv_heads(self):
        make([1, 4], [19, 35], group=2, kv_heads=3).check()

    @pytest.mark.parametrize("head_dim", [64, 128])
    def test_head_sizes(self, head_dim):
        make([1, 2, 70], [33, 17, 75], head_dim=head_dim).check()

    def test_decodes_at_the_edges_of_pages_and_chunks(self):
        contexts = [1, 15, 16, 17, 31, 32, 33, 64, 127, 128, 129, 140]
        make([1] * len(contexts), contexts).check()  # 128: where the chunks begin to grow

    def test_short_spans_at_the_edges_of_pages_and_chunks(self):
        make([2, 2, 5, 16, 3], [2, 16, 17, 32, 65]).check()

    def test_a_long_span_from_nothing_and_over_a_prefix(self):
        make([65, 65, 70], [65, 128, 129], page=64).check()

    def test_large_scores(self):
        case = make([1, 3, 65], [50, 40, 70])
        case.query *= (scale := 40)
        # A score errs by a share of its size, and a weight by what its score does.
        atol = scale * TOLERANCE[torch.float32]
        torch.testing.assert_close(case.run().cpu().double(), case.expected(), rtol=0, atol=atol)

    def test_equals_the_reference(self):
        case = make([1, 7, 66], [40, 33, 80], page=4)
        starts, contexts = torch.tensor(case.starts), torch.tensor(case.contexts)
        plan = AttentionPlan.build(
            case.layout,
            starts,
            contexts,
            case.table.cpu().long(),
            torch.zeros(case.starts[-1], dtype=torch.long),
        )
        said = reference.paged_attention(case.arena.cpu(), plan, LAYER, case.query.cpu())
        atol = TOLERANCE[torch.float32]
        torch.testing.assert_close(case.run().cpu(), said, rtol=0, atol=atol)


class TestNeighbours:
    def test_a_sequence_alone_is_a_sequence_in_a_batch(self):
        case = make([1, 2, 64, 66, 1], [40, 150, 70, 90, 10])
        together = case.run()
        for index, (a, b) in enumerate(pairwise(case.starts)):
            assert torch.equal(case.alone(index).run(), together[a:b])

    def test_bounds_of_the_batch_change_nothing(self):
        case = make([1, 2], [40, 21], wide=3)
        loose = Work(2, 2, 3, 2, 3, 80)
        assert torch.equal(case.run(), case.run(work=loose))
        assert torch.equal(case.run(), case.run(work=None))

    @pytest.mark.parametrize("spans", [[1, 3], [2, 64, 1], [66, 1, 5], [1, 1]])
    def test_a_recorded_size_serves_every_batch_that_it_holds(self, spans):
        """Filled up with unused rows and sequences, at the bounds of the size alone."""
        case = make(spans, [s + 30 for s in spans], wide=2, padding=80 - sum(spans))
        used, width = case.starts[-1], case.table.shape[1]
        more = 6 - len(spans)
        found = case.run(
            starts=integers(case.starts + [used] * more),
            contexts=integers(case.contexts + [0] * more),
            table=torch.cat([case.table, case.table.new_zeros(more, width)]),
            work=Work.within(6, 80, 16 * width),
        )
        assert torch.equal(found[:used], case.run()[:used]) and not found[used:].any()


class TestEdges:
    @pytest.mark.parametrize("spans", [[1, 1], [3], [65]])
    def test_padding_rows_and_sequences_are_zeros(self, spans):
        case = make(spans, [s + 9 for s in spans], padding=3)
        used, more = case.starts[-1], 2
        case.query[used:] = float("nan")
        found = case.run(
            starts=integers(case.starts + [used] * more),
            contexts=integers(case.contexts + [0] * more),
            table=torch.cat([case.table, case.table.new_zeros(more, case.table.shape[1])]),
        )
        assert not found[used:].any()
        expected, atol = case.expected()[:used], TOLERANCE[torch.float32]
        torch.testing.assert_close(found[:used].cpu().double(), expected, rtol=0, atol=atol)

    def test_empty_batches(self):
        assert make([], []).run().shape == (0, 3, 16)
        case = make([], [], padding=2)
        assert not case.run().any()
        assert not make([0, 0], [0, 0], padding=2).run().any()

    def test_a_sequence_without_rows_between_others(self):
        make([1, 0, 2], [9, 0, 12]).check()

    def test_nan_of_one_sequence_stays_there(self):
        case = make([1, 1], [20, 20])
        case.arena[case.written[0][3]] = float("nan")
        found = case.run()
        assert found[0].isnan().all()
        assert not found[1].isnan().any()


class TestChoices:
    def test_work_of_a_batch(self):
        found = Work.of([0, 1, 3, 67, 132, 132], [9, 8, 64, 100, 7])
        assert found == Work(1, 2, 66, 1, 65, 100)

    def test_what_may_be_in_a_batch_bounds_what_is(self):
        draw = torch.Generator().manual_seed(4)
        for _ in range(300):
            most = int(torch.randint(1, 120, (), generator=draw))
            n = int(torch.randint(1, 7, (), generator=draw))
            spans = torch.randint(1, most + 1, (n,), generator=draw)
            exact = Work.counted(spans.int().numpy(), spans.int().numpy())
            rows = int(spans.sum()) if most > 1 else 0
            bound = Work.within(n, rows, int(spans.max()))
            assert all(value <= vars(bound)[name] for name, value in vars(exact).items())
        assert Work.within(5, 0, 9) == Work(5, 0, 0, 0, 0, 9)

    def test_more_sequences_get_longer_chunks(self):
        chosen = [Splits.choose(n, 2) for n in (1, 4, 16, 64, 256)]
        for near, far in pairwise(chosen):
            assert far.decode.chunk >= near.decode.chunk
            assert far.short.chunk >= near.short.chunk
        assert Splits.choose(1, 2).decode.chunk == 64

    def test_roofline(self):
        case = make([1, 3], [10, 5], group=2, kv_heads=2)
        found = roofline(case.layout, 4, case.starts, case.contexts)
        assert found.bytes == 15 * 2 * 2 * 16 * 2 + 2 * 4 * 4 * 16 * 2
        assert found.flops == 4 * 4 * 16 * (10 + 3 + 4 + 5)


def narrow(case):
    """Keys beyond the table."""
    return {"table": case.table[:, :1].contiguous()}


BAD = [
    ("query must have shape", lambda c: {"query": c.query[..., :8].contiguous()}),
    ("query must be bfloat16", lambda c: {"query": c.query.double()}),
    ("query must be contiguous", lambda c: {"query": c.query.repeat(1, 1, 2)[..., ::2]}),
    ("query must have 1 to 16 heads", lambda c: {"layout": replace(c.layout, kv_heads=2, slots=1)}),
    ("layout.head_dim", lambda c: {"layout": replace(c.layout, head_dim=24)}),
    ("layout.block_tokens", lambda c: {"layout": replace(c.layout, block_tokens=24)}),
    ("layout.slab_rows", lambda c: {"layout": replace(c.layout, slab_rows=9)}),
    ("layer must be in 0..1", lambda c: {"layer": 2}),
    ("arena must be float32", lambda c: {"arena": c.arena.half()}),
    ("arena must have shape", lambda c: {"arena": c.arena.flatten()}),
    ("arena must be on", lambda c: {"arena": torch.empty(c.arena.shape, device="meta")}),
    ("table must be int32", lambda c: {"table": c.table.long()}),
    ("table must be contiguous", lambda c: {"table": c.table.repeat(1, 2)[:, ::2]}),
    ("table is too narrow", narrow),
    ("arena must be contiguous", lambda c: {"arena": c.arena.repeat(1, 2)[:, ::2]}),
    ("starts must be int32", lambda c: {"starts": integers(c.starts).long()}),
    ("contexts must be on", lambda c: {"contexts": torch.zeros(2, device="meta").int()}),
    ("out must be float32", lambda c: {"out": c.query.half()}),
    ("starts must have shape", lambda c: {"starts": integers([0, 1])}),
    ("contexts must have shape", lambda c: {"contexts": integers([1])}),
    ("out must have shape", lambda c: {"out": c.query[:1]}),
    ("splits.short.chunk", lambda c: {"splits": Splits(Split(16, 4), Split(24, 4))}),
    ("splits.decode.most", lambda c: {"splits": Splits(Split(16, 3), Split(16, 4))}),
]


@pytest.mark.parametrize(("message", "change"), BAD, ids=[message for message, _ in BAD])
def test_wrong_arguments_are_named(message, change):
    case = make([1, 2], [40, 21])
    with pytest.raises(ValueError, match=message):
        case.run(**change(case))


def test_a_context_shorter_than_its_span_is_refused():
    with pytest.raises(ValueError, match="contexts must cover their spans"):
        Work.of([0, 5], [4])


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="needs an NVIDIA GPU")
class TestDevice:
    SHAPES = (  # of 1.5B, 32B and 0.5B
        {"group": 6, "kv_heads": 2, "head_dim": 128},
        {"group": 5, "kv_heads": 8, "head_dim": 128},
        {"group": 7, "kv_heads": 2, "head_dim": 64},
    )

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dtype", list(TOLERANCE))
    def test_values_at_real_shapes(self, shape, dtype):
        case = make(
            [1, 1, 2, 17, 64, 65, 300],
            [1, 4097, 1000, 2049, 64, 700, 1300],
            page=64,
            dtype=dtype,
            **shape,
        )
        case.check(splits=None)
        case.check(splits=Splits(Split(64, 64), Split(64, 32)))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_sequence_alone_is_a_sequence_in_a_batch(self, shape):
        case = make([1, 33, 65, 1], [4097, 1000, 700, 64], page=64, dtype=torch.bfloat16, **shape)
        splits = Splits.choose(4, shape["kv_heads"])
        together = case.run(splits=splits)
        for index, (a, b) in enumerate(pairwise(case.starts)):
            assert torch.equal(case.alone(index).run(splits=splits), together[a:b])

    def test_graph_replay_is_eager(self):
        shape = {"page": 64, "dtype": torch.bfloat16, **self.SHAPES[0]}
        first = make([1, 20, 80], [900, 300, 200], padding=40, **shape)
        other = make([5, 1, 70], [1100, 50, 90], padding=65, **shape)
        width = 18
        work = Work(3, 3, 70, 3, 100, width * 64)
        held = [torch.zeros(n, dtype=torch.int32, device=DEVICE) for n in (3 * width, 4, 3)]
        query = torch.zeros_like(first.query)
        arena = torch.zeros(max(len(first.arena), len(other.arena)), 128, device=DEVICE).bfloat16()
        out = torch.full_like(query, float("nan"))

        def launch():
            paged_attention(
                query,
                arena,
                first.layout,
                LAYER,
                held[0].view(3, width),
                held[1],
                held[2],
                work,
                out=out,
            )

        def fill(case):
            held[0].view(3, width)[:, : case.table.shape[1]] = case.table
            held[1].copy_(integers(case.starts))
            held[2].copy_(integers(case.contexts))
            query.copy_(case.query)
            arena[: len(case.arena)] = case.arena
            out.fill_(float("nan"))

        fill(first)
        launch()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launch()
        for case in (first, other, first):
            fill(case)
            graph.replay()
            replayed = out.clone()
            fill(case)
            launch()
            assert torch.equal(replayed, out)
            used = case.starts[-1]
            assert not out[used:].any()
            torch.testing.assert_close(
                out[:used].cpu().double(), case.expected()[:used], rtol=0, atol=1e-2
            )
