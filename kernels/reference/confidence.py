"""Confidence statistics of next-token distributions, from logits, in one place.

All are taken at temperature 1 and before any penalty, mask or truncation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.types.statistics import Confidence

MOST_LOG_ODDS = 87.0


def confidence(logits: Tensor, vocabulary: int) -> Confidence:
    """Statistics of each row.

    Args:
        logits: [rows, head_rows], any float dtype; computed in at least fp32.
        vocabulary: ids from here on are padding of the head and take no part.
    """
    if not 0 < vocabulary <= logits.shape[-1]:
        raise ValueError(
            f"vocabulary must be in 1..{logits.shape[-1]}, the head's rows; got {vocabulary}"
        )
    z = logits[:, :vocabulary]
    z = z if z.dtype == torch.float64 else z.float()
    top, index = z.max(-1)
    valid = top.isfinite() & ~z.isnan().any(-1)
    z = torch.where(valid[:, None], z, torch.zeros_like(z))
    top = torch.where(valid, top, torch.zeros_like(top))
    shifted = z - top[:, None]
    weight = shifted.exp()
    # The maximum's own term is exactly 1: kept out of the sum, the rest is not lost beside it.
    rest = weight.scatter(1, index[:, None], 0.0).sum(-1)
    total = 1 + rest
    surprise = torch.where(weight > 0, weight * shifted, torch.zeros_like(weight)).sum(-1)
    second = z.scatter(1, index[:, None], float("-inf")).amax(-1)
    log_total = torch.log1p(rest)
    odds = (-rest.log()).clamp(max=MOST_LOG_ODDS)
    return Confidence(
        entropy=log_total - surprise / total,
        max_prob=1 / total,
        log_odds=odds.masked_fill(second == float("-inf"), float("inf")),
        margin=top - second,
        max_logit=top,
        logsumexp=top + log_total,
        argmax=index,
        valid=valid,
    )
