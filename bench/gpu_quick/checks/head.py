"""Checks of the ops on logits: statistics, draws, scores, and the LM head that makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.gpu_quick.checks.check import Check, Outputs
from bench.gpu_quick.checks.tensors import DTYPE, Maker, taken
from kernels.ops import Backend, Confidence, DrawRows
from kernels.reference import confidence as reference
from kernels.reference import sampling

ROWS = 5
_NEAR = {"entropy": (1e-4, 2e-3), "max_prob": (1e-4, 1e-5), "log_odds": (1e-4, 2e-3)}
_EXACT = (0.0, 0.0)


def _near(wide: float = 1e-3) -> tuple[tuple[float, float], ...]:
    """Allowed errors of the statistics (sums in fp32). ``wide``: absolute one of logits."""
    return tuple(
        _EXACT if name in ("argmax", "valid") else _NEAR.get(name, (1e-5, wide))
        for name in Confidence._fields
    )


def _logits(make: Maker, dtype: torch.dtype) -> Tensor:
    """Logits of a vocabulary and of some padding ids that would win; the best id leads clearly."""
    rows, width = ROWS, make.shape.head_rows
    logits = make.normal(rows, width, spread=2.0, dtype=torch.float32).cpu()
    logits[:, -3:] = 50.0
    logits[torch.arange(rows), torch.arange(rows) * 7 % (width - 3)] = 14.0
    return logits.to(dtype).to(make.device)


def confidences(make: Maker) -> Iterator[Check]:
    """Checks of statistics in both types, a draw with all filters, and scores of given ids."""
    vocabulary = make.shape.head_rows - 3
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        yield _statistics(make.backend, f"statistics_{name}", _logits(make, dtype), vocabulary)
    logits = _logits(make, torch.float32)
    yield _draw(make.backend, logits, vocabulary)
    targets = make.whole(0, vocabulary, ROWS, 2, dtype=torch.int64)
    yield Check(
        "confidence",
        "score",
        lambda rows: (make.backend.score(taken(logits, rows), vocabulary, taken(targets, rows)),),
        lambda: (logits.double()[:, :vocabulary].log_softmax(-1).gather(1, targets),),
        ROWS,
        ((1e-5, 1e-4),),
    )


def _statistics(backend: Backend, name: str, logits: Tensor, vocabulary: int) -> Check:
    return Check(
        "confidence",
        name,
        lambda rows: tuple(backend.confidence(taken(logits, rows), vocabulary)),
        lambda: tuple(reference.confidence(logits.double(), vocabulary)),
        ROWS,
        _near(),
    )


def _draw(backend: Backend, logits: Tensor, vocabulary: int) -> Check:
    """A check of tokens, exactly: a key draws the same one everywhere."""
    columns: dict[str, list[Any]] = {
        "temperature": [(0.8, 1.5, 0.0)[i % 3] for i in range(ROWS)],
        "key": [11 + i for i in range(ROWS)],
        "counter": [[0, i, 1] for i in range(ROWS)],
        "top_k": [(0, 20)[i % 2] for i in range(ROWS)],
        "top_p": [(1.0, 0.9)[i % 2] for i in range(ROWS)],
        "min_p": [(0.0, 0.01)[i % 2] for i in range(ROWS)],
    }

    def run(rows: Sequence[int]) -> Outputs:
        chosen = {name: [values[row] for row in rows] for name, values in columns.items()}
        draw = DrawRows.on(logits.device, **chosen)
        return (backend.sample(taken(logits, rows), vocabulary, draw),)

    def expected() -> Outputs:
        rows = DrawRows.on("cpu", **columns)
        return (sampling.sample(logits.cpu().double(), vocabulary, rows),)

    return Check("confidence", "draw", run, expected, ROWS, (_EXACT,))


def lm_heads(make: Maker) -> Iterator[Check]:
    """Checks of statistics out of the product, and of the logits that are kept."""
    s = make.shape
    hidden = make.normal(ROWS, s.hidden, spread=s.hidden**-0.5, dtype=make.head_dtype)
    weight = make.normal(s.head_rows, s.hidden, spread=2.0, dtype=make.head_dtype)
    vocabulary = s.head_rows - 3

    def run(rows: Sequence[int]) -> Outputs:
        found, logits = make.backend.lm_head(taken(hidden, rows), weight, vocabulary, keep=True)
        assert logits is not None
        # Close logits may swap in fp32, so the argmax is left out: max_logit covers the winner.
        return (*(p for n, p in zip(found._fields, found, strict=True) if n != "argmax"), logits)

    def expected() -> Outputs:
        logits = hidden.double() @ weight.double().T
        found = reference.confidence(logits, vocabulary)
        return (*(p for n, p in zip(found._fields, found, strict=True) if n != "argmax"), logits)

    near = [n for name, n in zip(Confidence._fields, _near(), strict=True) if name != "argmax"]
    # In other types than the models' a library computes the product, which promises no bits.
    yield Check(
        "lm_head",
        "statistics",
        run,
        expected,
        ROWS,
        (*near, (1e-4, 1e-3)),
        alone=make.head_dtype == DTYPE,
    )
