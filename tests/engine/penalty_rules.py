"""Penalties and biases as a slow version of their rules, and as the rows of the op."""

from __future__ import annotations

from collections import Counter

import torch

from kernels import ops

BIAS = {3: 1.5, 9: -2.0, 20: 0.75, 35: -100.0}
SETTINGS = {
    "repetition": {"repetition_penalty": 1.6},
    "repetition wanted": {"repetition_penalty": 0.8},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.4},
    "bias": {"logit_bias": BIAS},
    "all": {
        "repetition_penalty": 1.3,
        "presence_penalty": -0.6,
        "frequency_penalty": 0.7,
        "logit_bias": BIAS,
    },
}


def slow(row, prompt, text, params):
    """A row of logits with one rule after the other, a token at a time."""
    row = list(row)
    for token in {*prompt, *text}:
        rule = params.repetition_penalty
        row[token] = row[token] / rule if row[token] > 0 else row[token] * rule
    for token, times in Counter(text).items():
        row[token] -= params.frequency_penalty * times + params.presence_penalty
    for token, bias in params.logit_bias.items():
        row[token] += bias
    return row


def penalties(histories, params):
    """The op's rows; a history is a prompt and a generated text."""

    def pairs(lists):
        found = [(row, token) for row, tokens in enumerate(lists) for token in tokens]
        return torch.tensor(found, dtype=torch.int64).view(-1, 2).T

    def column(values):
        return torch.tensor(list(values), dtype=torch.float64)

    return ops.PenaltyRows(
        column(p.repetition_penalty for p in params),
        column(p.presence_penalty for p in params),
        column(p.frequency_penalty for p in params),
        pairs([h[0] for h in histories]),
        pairs([h[1] for h in histories]),
        pairs([p.logit_bias for p in params]),
        column(b for p in params for b in p.logit_bias.values()),
    )
