"""What is told of next-token distributions, row by row."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Confidence(NamedTuple):
    """Per row, [rows]. Natural logarithms; fp32 (``argmax`` int64, ``valid`` bool).

    entropy: of the softmax, in nats.
    max_prob: of the most likely token.
    log_odds: ``log(p / (1 - p))`` of the most likely token, without computing ``1 - p``. At most
        87, on every device: what is further behind the first is no normal fp32 number, and may
        count as none. inf where there is no second.
    margin: first minus second logit; inf where there is no second.
    max_logit: raw.
    logsumexp: raw.
    valid: False where the row holds NaN, +inf or nothing but -inf: its other values mean nothing.
    """

    entropy: Tensor
    max_prob: Tensor
    log_odds: Tensor
    margin: Tensor
    max_logit: Tensor
    logsumexp: Tensor
    argmax: Tensor
    valid: Tensor


class LogProbs(NamedTuple):
    """Natural logarithms at temperature 1, before any penalty, mask or truncation.

    drawn: fp64 [rows], of the given token.
    top: fp64 [rows, count], of the likeliest tokens, the likeliest first, equals by their ids.
    top_ids: int64 [rows, count].
    """

    drawn: Tensor
    top: Tensor
    top_ids: Tensor
