"""The op that penalises logits against a slow version of its rules."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from engine import SamplingParams
from kernels import ops
from tests.engine.penalty_rules import SETTINGS, penalties, slow

CPU = ops.CpuBackend()


def test_the_rules_by_hand():
    """Signs, repeats, zero and what is impossible; the prompt counts for the first rule only."""
    logits = torch.tensor([[4.0, -4.0, 0.0, 2.0, 1.0, -math.inf, 3.0, 9.0]])
    params = SamplingParams(
        repetition_penalty=2.0,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={4: -3.0, 5: 100.0, 0: 1.0},
    )
    rows = penalties([([0, 1, 0], [1, 3, 3, 2, 5])], [params])
    # 0: 4/2 + 1.  1: -4*2 - 0.75.  2: 0 - 0.75.  3: 2/2 - 2*0.25 - 0.5.  4: 1 - 3.  6: untouched.
    expected = [3.0, -8.75, -0.75, 0.0, -2.0, -math.inf, 3.0]
    assert CPU.penalise(logits, 7, rows).tolist() == [expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_op_equals_the_slow_version(dtype):
    """Ragged histories and every setting at once; each row as if it were alone."""
    torch.manual_seed(3)
    rng = random.Random(3)
    logits = (torch.randn(12, 31) * 4).to(dtype)
    logits[:, 27:] = math.nan  # padding of the head
    before = logits.clone()
    chosen = [SamplingParams(), *(SamplingParams(**s) for s in SETTINGS.values())]
    params = [replace(chosen[i % 7], logit_bias={5: 0.5 * i, i: -1.0}) for i in range(12)]
    histories = [[rng.choices(range(27), k=rng.choice([0, 3, 40])) for _ in "pt"] for _ in params]
    found = CPU.penalise(logits, 27, penalties(histories, params))
    assert found.dtype == torch.float64 and torch.equal(logits.isnan(), before.isnan())
    assert torch.equal(logits[:, :27], before[:, :27])
    for i, (history, p) in enumerate(zip(histories, params, strict=True)):
        row = logits[i : i + 1, :27]
        expected = slow(row[0].double().tolist(), *history, p)
        assert found[i].tolist() == pytest.approx(expected, rel=1e-14, abs=1e-14)
        assert torch.equal(CPU.penalise(row, 27, penalties([history], [p]))[0], found[i])


@pytest.mark.parametrize("rule", [5e-324, 1e-300, 1e308])
def test_extreme_penalties_leave_a_distribution(rule):
    """Numbers stay finite, what was impossible stays so, and the right token is greedy's."""
    logits = torch.tensor([[1.0, 30.0, -30.0, -math.inf, 0.0]])
    params = SamplingParams(repetition_penalty=rule)
    found = CPU.penalise(logits, 5, penalties([([0, 1, 2, 3, 4], [0])], [params]))
    assert found.isfinite().tolist() == [[True, True, True, False, True]]
    assert not found.softmax(-1).isnan().any()
    best = int(found.argmax())
    assert best in (0, 1) if rule < 1 else best == 1
