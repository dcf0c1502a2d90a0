"""Log-probabilities of drawn tokens and of the likeliest ones, as the model itself sees them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LogProbs(NamedTuple):
    """Natural logarithms at temperature 1, before any penalty, mask or truncation.

    drawn: fp64 [rows], of the given token.
    top: fp64 [rows, count], of the likeliest tokens, the likeliest first, equals by their ids.
    top_ids: int64 [rows, count].
    """

    drawn: Tensor
    top: Tensor
    top_ids: Tensor


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
