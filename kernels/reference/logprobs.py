"""Log-probabilities of drawn tokens and of the likeliest ones, as the model itself sees them."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.types.statistics import Confidence, LogProbs


def token_logprobs(logits: Tensor, vocabulary: int, tokens: Tensor, count: int) -> LogProbs:
    """The log-softmax of each row over the vocabulary, in fp64.

    Args:
        logits: [rows, head_rows], any float dtype, each row usable (``Confidence.valid``).
        vocabulary: ids from here on are padding of the head and take no part.
        tokens: int64 [rows], the drawn ids, below ``vocabulary``.
        count: likeliest tokens wanted; all ids if there are fewer.
    """
    z = logits[:, :vocabulary].double()
    logs = z.log_softmax(-1)
    ids = tokens.new_empty(len(z), 0)
    if count:  # a stable sort, so that equal logits stand in the order of their ids
        ids = z.argsort(dim=-1, descending=True, stable=True)[:, :count]
    return LogProbs(logs.gather(1, tokens[:, None])[:, 0], logs.gather(1, ids), ids)


def score(logits: Tensor, vocabulary: int, targets: Tensor, found: Confidence) -> Tensor:
    """Log-probabilities of given ids, fp64, of the shape of ``targets``; no copy of the logits.

    Args:
        logits: [rows, head_rows], any float dtype.
        vocabulary: ids from here on are padding of the head and take no part.
        targets: int64 [rows] or [rows, count]; what is no id below ``vocabulary`` scores NaN, as
            does every target of a row without a distribution.
        found: the statistics of these rows.
    """
    ids = targets.view(len(logits), -1)
    known = (ids >= 0) & (ids < vocabulary) & found.valid[:, None]
    x = logits.gather(1, ids.masked_fill(~known, 0)).double()
    # From the maximum, and its own from the odds: neither loses digits where logits are large.
    best = -torch.log1p(torch.exp(-found.log_odds.double()))
    logs = x - found.max_logit.double()[:, None] + best[:, None]
    return logs.masked_fill(~known, float("nan")).view(targets.shape)
