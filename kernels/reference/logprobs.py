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
    if count:
        ids = _likeliest(z, count)
    return LogProbs(logs.gather(1, tokens[:, None])[:, 0], logs.gather(1, ids), ids)


def _likeliest(z: Tensor, count: int) -> Tensor:
    """The ids of the highest values, descending, equal ones in the order of their ids.

    ``topk`` is far quicker than a sort of the vocabulary, but of values equal to the last one it
    takes any: their lowest ids are looked for beside it.
    """
    vocabulary = z.shape[1]
    count = min(count, vocabulary)
    values, ids = z.topk(count, -1)
    least = values[:, -1:]
    above = values > least
    backwards = torch.arange(vocabulary, 0, -1, device=z.device)
    equal = torch.where(z == least, backwards, 0).topk(count, -1).values
    ids = torch.cat([ids, vocabulary - equal], 1)
    wanted = torch.cat([above, equal > 0], 1)
    ids, order = torch.where(wanted, ids, vocabulary).sort(-1)
    keys = torch.cat([values, least.expand(-1, count)], 1).gather(1, order)
    keys = keys.masked_fill(ids == vocabulary, -torch.inf)
    ids = ids.gather(1, keys.argsort(dim=-1, descending=True, stable=True)[:, :count])
    return ids.clamp(max=vocabulary - 1)  # of an unusable row there is none


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
