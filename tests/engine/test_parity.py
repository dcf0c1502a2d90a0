"""One model alone says and writes what transformers says and writes."""

from __future__ import annotations

import pytest
import torch

from engine import SamplingParams
from engine.models.passes import Batch
from kernels import ops

# Odd sizes, 1, 3, 5 and 6 heads per KV head, tied and untied, heads with padding rows.
GQA5 = {"hidden": 40, "layers": 3, "heads": 5, "kv_heads": 1, "ff": 56, "tied": True}
GQA3 = {"hidden": 96, "layers": 2, "heads": 6, "kv_heads": 2, "ff": 72, "vocab": 48}
GQA1 = {"hidden": 30, "layers": 2, "heads": 3, "kv_heads": 3, "ff": 37, "vocab": 45, "tied": True}
GQA6 = {"hidden": 84, "layers": 3, "heads": 6, "kv_heads": 1, "ff": 51, "vocab": 61, "theta": 1e6}
FLAT = {"hidden": 18, "layers": 1, "heads": 3, "kv_heads": 1, "ff": 7, "eps": 1e-3, "scale": 0.6}
WIDE = {"hidden": 60, "layers": 4, "heads": 10, "kv_heads": 2, "ff": 90, "vocab": 39}
PAIRS = {"gqa5-gqa3": (GQA5, GQA3), "gqa1-gqa6": (GQA1, GQA6), "flat-wide": (FLAT, WIDE)}
CHUNKS = {
    "whole": {},
    "one row and one": {"max_sequences": 1, "max_tick_tokens": 2},
    "fives": {"max_sequences": 2, "max_tick_tokens": 5},
    "elevens": {"max_sequences": 8, "max_tick_tokens": 11},
}
ROLES = ("small", "large")


@pytest.fixture(scope="module", params=PAIRS)
def kit(request, make_pair, tmp_path_factory):
    """Each pair of shapes, once."""
    small, large = PAIRS[request.param]
    return make_pair(tmp_path_factory.mktemp("shapes"), small, large, seed=3)


def said(engine, role, texts):
    """Our logits of every row of ragged texts in one pass, over blocks in no order."""
    model, tokens = ROLES.index(role), engine.config.block_tokens
    shape = engine.shapes[model]
    layout = engine.arena.layout(shape, model, tokens)
    width = -(-max(map(len, texts)) // tokens)
    shuffled = torch.randperm(engine.arena.geometry.slabs * layout.slots)
    blocks = shuffled[: len(texts) * width].view(len(texts), width)
    places = [torch.arange(len(t)) for t in texts]
    slots = [b[p // tokens] * tokens + p % tokens for b, p in zip(blocks, places, strict=True)]
    lengths = torch.tensor([len(t) for t in texts])
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    plan = ops.AttentionPlan.build(layout, starts, lengths, blocks, torch.cat(slots))
    rows = torch.tensor([i for t in texts for i in t])
    batch = Batch(rows, torch.cat(places), torch.arange(len(rows)), plan)
    decoder = engine.lanes[model].runner.decoder
    return decoder.forward(batch, engine.arena.rows(shape)).split(lengths.tolist())


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("block_tokens", [1, 4, 16])
def test_logits_equal_transformers(kit, role, block_tokens, prompts):
    """Every row of a ragged batch within 1e-4, padding rows of the head included."""
    engine = kit.engine(block_tokens=block_tokens, arena_tokens=2048)
    texts = prompts(9, seed=block_tokens, longest=60)
    for text, ours in zip(texts, said(engine, role, texts), strict=True):
        theirs = kit.oracles[role].logits(text)
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("chunk", CHUNKS)
def test_64_greedy_tokens_equal_transformers(kit, role, chunk, prompts, same_text, ties):
    """Token by token from scratch, however the prefill is cut."""
    engine = kit.engine(block_tokens=4, arena_tokens=1024, **CHUNKS[chunk])
    (prompt,) = prompts(1, seed=5, longest=30)
    (done,) = engine.generate([prompt], SamplingParams(max_tokens=64), role)
    assert done.finish_reason == "length"
    expected, leads = kit.write(prompt, 64, lambda position: role)
    same_text(done.token_ids, expected, leads, ties)
    assert len(set(expected)) > 5, "the oracle writes dull text: this proves nothing"


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("chunk", ["whole", "fives", "elevens"])
def test_ragged_batches_equal_transformers(kit, role, chunk, prompts, same_text, ties):
    """24 prompts of 1 to 40 tokens at once."""
    engine = kit.engine(block_tokens=4, arena_tokens=4096, check_every=1, **CHUNKS[chunk])
    batch = prompts(24, seed=6)
    for done in engine.generate(batch, SamplingParams(max_tokens=16), role):
        expected, leads = kit.write(done.prompt_token_ids, 16, lambda position: role)
        same_text(done.token_ids, expected, leads, ties)


def test_prompts_come_back_in_order(kit, prompts):
    """Completions are those of their prompts, whatever order they end in."""
    engine = kit.engine(max_sequences=3, max_tick_tokens=8)
    batch = prompts(10, seed=7)
    done = engine.generate(batch, SamplingParams(max_tokens=5), "large")
    assert [list(c.prompt_token_ids) for c in done] == batch
    assert all(len(c.token_ids) == 5 for c in done)
