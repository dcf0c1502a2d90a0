"""The statistics of a row of logits, as their definitions say."""

from __future__ import annotations

import math

import torch

INF = math.inf


def oracle(z):
    """All statistics in fp64, each by its own formula."""
    z = z.double()
    p = z.softmax(-1)
    top = z.amax(-1)
    first = (z == top[:, None]).int().argmax(-1)
    others = z.clone().scatter_(1, first[:, None], -INF)
    return {
        "entropy": torch.special.entr(p).sum(-1),
        "max_prob": p.amax(-1),
        "log_odds": top - others.logsumexp(-1),
        "margin": top - others.amax(-1),
        "max_logit": top,
        "logsumexp": z.logsumexp(-1),
        "argmax": first,
    }
