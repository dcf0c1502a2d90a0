"""Many rows that want much of their logits: taken a few at a time, and counted in the room."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine import EngineConfig, SamplingParams
from engine.config import ROWS_AT_ONCE
from engine.config.named_models import NAMED_MODELS
from engine.device.memory_budget import workspace_bytes
from engine.execution.sampled_rows import History, SampledRows
from engine.execution.sampler import Sampler
from kernels import ops

VOCABULARY = 38
SETTINGS = [
    {"repetition_penalty": 1.4, "frequency_penalty": 0.3, "logprobs": 3},
    {"temperature": 0.8, "presence_penalty": 0.6, "logit_bias": {3: 2.0, 30: -1.0}, "logprobs": 0},
    {"temperature": 1.2, "min_tokens": 9},
    {"temperature": 0.9, "repetition_penalty": 0.8, "top_p": 0.9, "logprobs": 5},
]


def rows_of(count):
    """Rows of every setting; the last token of each third is on the device only."""
    numbers = np.random.default_rng(count)
    params = [SamplingParams(seed=i, **SETTINGS[i % len(SETTINGS)]) for i in range(count)]
    draws = [
        SimpleNamespace(
            params=p, draw_key=i, sample=0, prompt_tokens=5, stop_ids=(1, 2), asks=p.logprobs
        )
        for i, p in enumerate(params)
    ]
    tokens = numbers.integers(0, VOCABULARY, (count, 12)).astype(np.int32)
    histories = {
        i: History(text[:5], text[5:], unread=i % 3 == 0)
        for i, text in enumerate(tokens)
        if params[i].looks_back
    }
    contexts = np.full(count, 12, np.int32)
    none = np.zeros(count, np.int32)
    rows = SampledRows(np.arange(count), contexts, none, draws, none.astype(bool))
    return rows, histories


class RowsTaken(TorchDispatchMode):
    """Sees what PyTorch computes. ``most``: rows of logits that were taken out at a time."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.index_select.default and result.dim() == 2:
            self.most = max(self.most, len(result))
        return result


@pytest.mark.parametrize("count", [1, ROWS_AT_ONCE, ROWS_AT_ONCE + 1, 3 * ROWS_AT_ONCE + 5])
def test_a_few_at_a_time_are_all_at_once(count):
    draw = torch.Generator().manual_seed(count)
    logits = 3 * torch.randn(count, VOCABULARY + 10, generator=draw)
    logits[count // 2, 4] = torch.nan
    last = torch.randint(0, VOCABULARY, (count,), generator=draw).int()
    backend, taken, found = ops.CpuBackend(), [], []
    confidence = backend.confidence(logits, VOCABULARY)
    for limit in ({}, {"rows_at_once": 10**6}):
        sampler = Sampler(0, VOCABULARY, backend, **limit)
        draws = sampler.prepared(*rows_of(count))
        columns = {name: torch.from_numpy(column) for name, column in draws.columns.items()}
        with RowsTaken() as rows:
            chosen, scores = sampler.choose(logits, confidence, draws, columns, last)
        found.append((chosen, *scores))
        taken.append(rows.most)
    all_at_once = -(-3 * count // 4)  # three in four settings have penalties, or ask
    assert taken == [min(all_at_once, ROWS_AT_ONCE), all_at_once]
    for pieces, whole in zip(*found, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=0, atol=0, equal_nan=True)


SHAPE = NAMED_MODELS["qwen-1.5b"]


@pytest.mark.parametrize(
    ("shape", "less", "more"),
    [
        # Fewer heads of keys are cut finer, though there is less of them.
        ({"kv_heads": 2}, {}, {}),
        ({}, {"graphs": "off"}, {"graphs": "auto"}),
        ({}, {"graph_rows": 0}, {"graph_rows": 1024}),
        ({}, {}, {"fused_sampling": False}),
    ],
)
def test_what_takes_more_room(shape, less, more):
    base = replace(SHAPE, kv_heads=12)
    small = workspace_bytes(base, EngineConfig(**less), 2)
    assert small < workspace_bytes(replace(base, **shape), EngineConfig(**more), 2)


def test_a_row_of_a_larger_batch_takes_a_few_copies_of_its_logits():
    """Log-probabilities and penalties take what a few rows do, however many want them."""
    few, many = (
        workspace_bytes(SHAPE, EngineConfig(max_sequences=n, max_tick_tokens=2048), 2)
        for n in (64, 512)
    )
    assert (many - few) / 448 < 2 * 6 * 4 * SHAPE.vocab_size
