"""Cases of the kernels on logits: confidence, with and without a draw, and the LM head."""

from __future__ import annotations

from functools import partial
from itertools import product

import torch
from torch import Tensor

from bench.kernel_bench.case import DTYPE, Case, CaseMaker
from kernels import confidence, lm_head
from kernels.aot.confidence import roofline as confidence_roofline
from kernels.aot.lm_head import roofline as lm_head_roofline
from kernels.aot.variant import ModelShape
from kernels.merge import ScoredRows
from kernels.reference import confidence as reference
from kernels.reference import layers
from kernels.reference.sampling import philox_words, race_times
from kernels.types.sampling import DrawRows
from kernels.types.statistics import Confidence

_STATISTICS = len(Confidence._fields)
TEMPERATURE, TOP_K, TOP_P = 0.8, 50, 0.9
_SCRATCH = 32  # bytes a logit: the fp32 copies that plain torch makes of them, with a margin
_NOTE = "torch makes the random numbers by some hundred operations on integers"


def confidences(shape: ModelShape, batch: int, maker: CaseMaker) -> list[Case]:
    """Statistics of stored logits, alone, with a token drawn, and drawn under filters."""
    vocabulary = shape.head_rows
    filters = Case(
        "confidence",
        "statistics_filters",
        batch,
        confidence_roofline(batch, vocabulary, DTYPE),
        partial(_filter_inputs, maker, batch, vocabulary),
        _filtered,
        _plain_filtered,
        scratch=3 * _SCRATCH * batch * vocabulary,
        note=_NOTE,
    )
    found = [*_unfiltered(maker, vocabulary, batch, DTYPE), filters]
    if batch == 1:
        for rows, dtype in product(maker.many, (DTYPE, torch.float32)):
            found += _unfiltered(maker, vocabulary, rows, dtype)
    return found


def _unfiltered(maker: CaseMaker, vocabulary: int, rows: int, dtype: torch.dtype) -> list[Case]:
    roofline, scratch = confidence_roofline(rows, vocabulary, dtype), _SCRATCH * rows * vocabulary
    kind = "" if dtype == DTYPE else "_fp32"
    return [
        Case(
            "confidence",
            f"statistics{kind}",
            rows,
            roofline,
            lambda: (maker.random(rows, vocabulary, dtype=dtype),),
            partial(_statistics, vocabulary=vocabulary),
            partial(reference.confidence, vocabulary=vocabulary),
            scratch=scratch,
        ),
        Case(
            "confidence",
            f"statistics_draw{kind}",
            rows,
            roofline,
            partial(_draw_inputs, maker, rows, vocabulary, dtype),
            _drawn,
            _plain_drawn,
            scratch=3 * scratch,
            note=_NOTE,
        ),
    ]


def lm_heads(shape: ModelShape, batch: int, maker: CaseMaker) -> list[Case]:
    """Statistics of logits that are never stored; in torch the product, then its statistics.

    The product alone is timed, too: the difference is the cost of the statistics.
    """
    vocabulary, hidden = shape.head_rows, shape.hidden

    def inputs() -> tuple[Tensor, Tensor]:
        return maker.random(batch, hidden) * hidden**-0.5, maker.random(vocabulary, hidden)

    return [
        Case(
            "lm_head",
            "statistics",
            batch,
            lm_head_roofline(batch, hidden, vocabulary, DTYPE),
            inputs,
            _head,
            _plain_head,
            scratch=_SCRATCH * batch * vocabulary,
            parts={"product": (layers.linear, "the product alone, its logits stored")},
        )
    ]


def _statistics(logits: Tensor, vocabulary: int) -> tuple[Tensor, ...]:
    return confidence.confidence(logits, vocabulary)[:_STATISTICS]


def _draw_inputs(
    maker: CaseMaker, batch: int, vocabulary: int, dtype: torch.dtype = DTYPE
) -> tuple[Tensor, ...]:
    """Logits, temperatures, keys and counters."""
    key, counter = torch.arange(batch) + 7, torch.arange(3 * batch).view(batch, 3)
    temperature = torch.full((batch,), TEMPERATURE, dtype=torch.float64)
    columns = (c.to(maker.device) for c in (temperature, key, counter))
    return maker.random(batch, vocabulary, dtype=dtype), *columns


def _drawn(logits: Tensor, temperature: Tensor, key: Tensor, counter: Tensor) -> ScoredRows:
    return confidence.confidence(logits, logits.shape[1], DrawRows(temperature, key, counter))


def _times(key: Tensor, counter: Tensor, vocabulary: int) -> Tensor:
    return race_times(philox_words(key, counter, vocabulary)).float()


def _first(logits: Tensor, temperature: Tensor, times: Tensor, found: Confidence) -> Tensor:
    """The first to arrive; relative to the greatest logit, as the kernel computes it."""
    heat = (logits.float() - found.max_logit[:, None]) / temperature.float()[:, None]
    return (times * torch.exp(-heat)).argmin(-1, keepdim=True)


def _plain_drawn(
    logits: Tensor, temperature: Tensor, key: Tensor, counter: Tensor
) -> tuple[Tensor, ...]:
    """The same race."""
    found = reference.confidence(logits, logits.shape[1])
    token = _first(logits, temperature, _times(key, counter, logits.shape[1]), found)
    logprob = logits.gather(1, token)[:, 0].float() - found.logsumexp
    return *found, token[:, 0], logprob


def _filter_inputs(maker: CaseMaker, batch: int, vocabulary: int) -> tuple[Tensor, ...]:
    """The same, a top-k and a top-p; the logits of a few tokens stand out, as a model's do."""
    inputs = _draw_inputs(maker, batch, vocabulary)
    inputs[0].mul_(2.5)
    top_k = torch.full((batch,), TOP_K, device=maker.device)
    return *inputs, top_k, torch.full((batch,), TOP_P, dtype=torch.float64, device=maker.device)


def _filtered(
    logits: Tensor, temperature: Tensor, key: Tensor, counter: Tensor, top_k: Tensor, top_p: Tensor
) -> ScoredRows:
    draw = DrawRows(temperature, key, counter, top_k, top_p)
    return confidence.confidence(logits, logits.shape[1], draw)


def _plain_filtered(
    logits: Tensor, temperature: Tensor, key: Tensor, counter: Tensor, top_k: Tensor, top_p: Tensor
) -> tuple[Tensor, ...]:
    """A stable sort, its first TOP_K, of those the shortest beginning that has TOP_P; they race."""
    found = reference.confidence(logits, logits.shape[1])
    order = logits.sort(dim=-1, descending=True, stable=True)
    values, ids = order.values[:, :TOP_K], order.indices[:, :TOP_K]
    times = _times(key, counter, logits.shape[1])
    mass = (values.double() / temperature[:, None]).softmax(-1)
    kept = mass.cumsum(-1) - mass < top_p[:, None]
    values = values.float().masked_fill(~kept, float("-inf"))
    place = _first(values, temperature, times.gather(1, ids), found)
    logprob = values.gather(1, place)[:, 0] - found.logsumexp
    return *found, ids.gather(1, place)[:, 0], logprob


def _head(hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return lm_head.lm_head(hidden, weight, len(weight))[0][:_STATISTICS]


def _plain_head(hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    return reference.confidence(layers.linear(hidden, weight), len(weight))
