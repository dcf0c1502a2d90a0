"""The CPU kernels against fp64: a whole pass at ragged shapes, and the statistics."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels import cpu
from kernels.reference.confidence import confidence
from tests.kernels.cpu_model import EVEN, ODD, SHAPES, TOLERANCE, Model, Shape, Texts, assert_close

SETS = cpu.instruction_sets()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("instruction_set", SETS)
def test_ragged_batches(shape: Shape, dtype: torch.dtype, instruction_set: str):
    model = Model(shape, dtype)
    fast = model.fast(instruction_set=instruction_set, threads=2)
    lengths = [1, 9, 23, 17, 2]
    texts = Texts(model, lengths)
    expected = [model.logits(text) for text in texts.texts]
    done = [0] * len(lengths)
    # Prefills of 1 to 17 rows, catch-ups and decodes in one batch, until all texts are read.
    for step in (1, 8, 17, 3, 30):
        spans = {
            i: range(done[i], min(done[i] + (step + i) % 18 + 1, n)) for i, n in enumerate(lengths)
        }
        spans = {i: r for i, r in spans.items() if r}
        if not spans:
            break
        found = texts.run(fast, spans).split([len(r) for r in spans.values()])
        for (i, r), rows in zip(spans.items(), found, strict=True):
            assert_close(rows, expected[i][r.start : r.stop], dtype)
            done[i] = r.stop
    assert done == lengths


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("instruction_set", SETS)
def test_a_row_has_the_same_bits_in_any_batch(dtype: torch.dtype, instruction_set: str):
    model = Model(replace(EVEN, layers=1), dtype)
    texts = Texts(model, [300, 40, 3, 290])

    def pieces(threads: int, *steps: dict[int, range]) -> Tensor:
        fast = model.fast(instruction_set=instruction_set, threads=threads)
        texts.arena.fill_(torch.nan)
        for step in steps[:-1]:
            texts.run(fast, step)
        return texts.run(fast, steps[-1])[-1]  # of the last text's last row

    whole = pieces(1, {0: range(300)})
    assert torch.equal(whole, pieces(2, {0: range(17)}, {0: range(17, 299)}, {0: range(299, 300)}))
    crowd = {1: range(40), 2: range(3), 3: range(290), 0: range(5, 300)}
    assert torch.equal(whole, pieces(2, {0: range(5)}, crowd))


def test_long_contexts():
    model = Model(replace(ODD, layers=1), torch.float32)
    texts = Texts(model, [700])
    expected = model.logits(texts.texts[0])
    fast = model.fast(threads=2)
    assert_close(texts.run(fast, {0: range(690)}), expected[:690], torch.float32)
    assert_close(texts.run(fast, {0: range(690, 700)}), expected[690:], torch.float32)


@pytest.mark.parametrize("instruction_set", SETS)
def test_writes_its_rows_and_nothing_else(instruction_set: str):
    model = Model(ODD, torch.float32)
    texts = Texts(model, [9, 6])
    fast = model.fast(instruction_set=instruction_set)
    texts.run(fast, {0: range(9)})
    before = texts.arena.clone()
    *batch, plan = texts.inputs({1: range(6)})
    found = fast.logits(*batch, plan, texts.arena)
    changed = (before.nan_to_num(7) != texts.arena.nan_to_num(7)).any(-1).nonzero().flatten()
    first = texts.layout.first_row(plan.slots.long() // ODD.block_tokens)
    planes = torch.arange(2 * ODD.layers * ODD.kv_heads) * ODD.block_tokens
    rows = first[:, None] + plan.slots[:, None] % ODD.block_tokens + planes
    assert changed.tolist() == rows.flatten().sort().values.tolist()
    assert found.isfinite().all()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rows_that_stop_before_the_head(dtype: torch.dtype):
    """What the head would have been multiplied with; all rows' logits keep their bits."""
    model = Model(ODD, dtype)
    texts = Texts(model, [9, 6])
    fast = model.fast(threads=2)
    *batch, plan = texts.inputs({0: range(9), 1: range(6)})
    expected = fast.logits(*batch, plan, texts.arena)
    for headless in (0, 1, 6, 15):
        logits, hidden = fast.split(*batch, plan, texts.arena, headless)
        assert torch.equal(logits, expected[: 15 - headless])
        assert hidden.dtype == dtype and len(hidden) == headless
        assert torch.equal(fast.head_logits(hidden), expected[15 - headless :])
        product = hidden.double() @ model.head.double().T
        assert_close(product, expected[15 - headless :].double(), dtype) if headless else None
    with pytest.raises(ValueError, match="hidden"):
        fast.head_logits(hidden[:, :-1])
    for headless in (-1, 16):
        with pytest.raises(ValueError, match="headless must be in 0"):
            fast.split(*batch, plan, texts.arena, headless)


def test_padding_changes_nothing():
    model = Model(ODD, torch.bfloat16)
    texts = Texts(model, [9, 6])
    fast = model.fast()
    tokens, positions, sampled, plan = texts.inputs({0: range(9), 1: range(6)})
    expected = fast.logits(tokens, positions, sampled, plan, texts.arena)
    before = texts.arena.clone()
    more = torch.zeros(3, dtype=torch.int32)
    plan.starts = torch.cat([plan.starts, plan.starts[-1:]])
    plan.contexts = torch.cat([plan.contexts, more[:1]])
    plan.table = torch.cat([plan.table, plan.table[:1]])
    plan.slots = torch.cat([plan.slots, more - 1])
    found = fast.logits(
        torch.cat([tokens, more]), torch.cat([positions, more]), sampled, plan, texts.arena
    )
    assert torch.equal(found, expected)
    assert torch.equal(texts.arena.nan_to_num(7), before.nan_to_num(7))


def test_pairs_that_attention_works_on():
    model = Model(ODD, torch.float32)
    texts = Texts(model, [40, 9, 30, 8])
    spans = {0: range(40), 1: range(8, 9), 2: range(3, 30), 3: range(8)}
    plan = texts.inputs(spans)[-1]
    stretches = [
        (min(first + 8, r.stop) - first, min(first + 8, r.stop))
        for r in spans.values()
        for first in range(r.start, r.stop, 8)
    ]
    assert model.fast().attended(plan) == sum(rows * keys for rows, keys in stretches)


def test_a_broken_sequence_breaks_no_other():
    model = Model(ODD, torch.float32)
    texts = Texts(model, [4, 4])
    fast = model.fast()
    texts.texts = [torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 8])]
    model.embedding[7] = torch.nan
    whole = texts.run(fast, {0: range(4)})
    found = texts.run(fast, {1: range(4), 0: range(4)})
    assert torch.equal(found[4:], whole)
    assert whole.isfinite().all()
    assert cpu.confidence(found, 61).valid[2:].tolist() == [False, False, *[True] * 4]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokens", 61, r"tokens must be in 0\.\.60, got 61"),
        ("positions", 1200, r"positions must be in 0\.\.1199, got 1200"),
        ("slots", 99, "slots must be in -1"),
        ("starts", 7, "starts must be in"),
        ("contexts", 99, "contexts must be in"),
        ("table", 50, "table must be in"),
        ("table", -1, "table must be in"),
        ("sampled", -1, "sampled must be in"),
    ],
)
def test_numbers_that_point_nowhere(name: str, value: int, message: str):
    model = Model(ODD, torch.float32)
    texts = Texts(model, [5])
    tokens, positions, sampled, plan = texts.inputs({0: range(5)})
    plan.tokens, plan.positions, plan.sampled = tokens, positions, sampled
    getattr(plan, name).view(-1)[-1] = value
    with pytest.raises(ValueError, match=message):
        model.fast().logits(tokens, positions, sampled, plan, texts.arena)
    assert texts.arena.isnan().all()


def test_arguments_of_another_kind():
    model = Model(ODD, torch.float32)
    texts = Texts(model, [5])
    *batch, plan = texts.inputs({0: range(5)})
    with pytest.raises(ValueError, match="tokens must be int32, got int64"):
        model.fast().logits(batch[0].long(), *batch[1:], plan, texts.arena)
    with pytest.raises(ValueError, match="arena must be float32, got bfloat16"):
        model.fast().logits(*batch, plan, texts.arena.bfloat16())
    with pytest.raises(ValueError, match="layout is of another model"):
        plan.layout = replace(plan.layout, layers=3)
        model.fast().logits(*batch, plan, texts.arena)
    model.layers[1].down = model.layers[1].down[:, :-1]
    with pytest.raises(ValueError, match="down must have shape"):
        model.fast()
    with pytest.raises(ValueError, match="no instruction set mmx"):
        Model(ODD, torch.float32).fast(instruction_set="mmx")


@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 64, 1000, 4099])
@pytest.mark.parametrize("instruction_set", SETS)
def test_confidence(columns: int, instruction_set: str):
    generator = torch.Generator().manual_seed(columns)
    logits = torch.randn(5, columns + 3, generator=generator) * torch.tensor(
        [[0.01], [1.0], [10.0], [40.0], [3.0]]
    )
    logits[1, : columns - 1] = -torch.inf  # all but the last
    logits[:, columns:] = torch.nan  # padding takes no part
    logits[4, : columns // 2] = 20.0  # ties: the first counts
    found = cpu.confidence(logits, columns, instruction_set)
    expected = confidence(logits.double(), columns)
    for name, f, e in zip(expected._fields, found, expected, strict=True):
        if e.is_floating_point():
            torch.testing.assert_close(f.double(), e, rtol=1e-5, atol=1e-5, msg=name)
        else:
            assert torch.equal(f, e), name


@pytest.mark.parametrize("instruction_set", SETS)
def test_confidence_near_certainty(instruction_set: str):
    logits = torch.zeros(1, 49152)
    logits[0, 777] = 30.0
    found = cpu.confidence(logits, 49152, instruction_set)
    expected = confidence(logits.double(), 49152)
    torch.testing.assert_close(found.log_odds.double(), expected.log_odds, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.entropy.double(), expected.entropy, rtol=1e-5, atol=0)


@pytest.mark.parametrize("instruction_set", SETS)
def test_unusable_rows_are_flagged(instruction_set: str):
    logits = torch.zeros(5, 40)
    logits[0, 39] = torch.nan
    logits[1, 3] = torch.inf
    logits[2] = -torch.inf
    logits[3, 5] = -torch.inf
    found = cpu.confidence(logits, 40, instruction_set)
    assert found.valid.tolist() == [False, False, False, True, True]


def test_confidence_of_nothing_and_of_bad_input():
    assert len(cpu.confidence(torch.zeros(0, 5), 5).argmax) == 0
    with pytest.raises(ValueError, match=r"vocabulary must be in 1\.\.5"):
        cpu.confidence(torch.zeros(1, 5), 6)
    with pytest.raises(ValueError, match="logits must be float32"):
        cpu.confidence(torch.zeros(1, 5).double(), 5)
