"""Log-probabilities: the likeliest tokens, equal ones in the order of their ids; the head alone."""

from __future__ import annotations

import pytest
import torch

from kernels.reference.logprobs import token_logprobs


@pytest.mark.parametrize("levels", [1, 2, 5, 10**6])
@pytest.mark.parametrize("count", [0, 1, 3, 20, 40])
@pytest.mark.parametrize("vocabulary", [5, 30, 1000])
def test_as_a_stable_sort_of_the_vocabulary(vocabulary: int, count: int, levels: int) -> None:
    """With few different values nearly all are equal; ids past the vocabulary take no part."""
    generator = torch.Generator().manual_seed(vocabulary * count + levels)
    z = torch.randint(0, levels, (17, vocabulary + 3), generator=generator).float()
    z[:, vocabulary:] = levels + 1.0
    z[0, :vocabulary] = -torch.inf
    z[0, 1] = 0.0
    found = token_logprobs(z, vocabulary, torch.zeros(17, dtype=torch.int64), count)
    wide = z[:, :vocabulary].double()
    ids = wide.argsort(dim=-1, descending=True, stable=True)[:, :count]
    assert torch.equal(found.top_ids, ids)
    assert torch.equal(found.top, wide.log_softmax(-1).gather(1, ids))
