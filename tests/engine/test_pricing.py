"""Prices of shapes, bytes moved, and usages as values."""

from __future__ import annotations

import numpy as np
import pytest

from engine import SamplingParams
from engine.accounting.ledger import Usage
from engine.accounting.pricing import Price, bytes_moved, weight_bytes
from engine.config import ModelConfig
from engine.routing.policies import Call

from .books import ROLES, book, random_schedule

SHAPE = ModelConfig(
    vocab_size=7, hidden_size=4, intermediate_size=5, layers=3, heads=2, kv_heads=1, head_dim=2
)


def test_price_by_hand():
    """q and o 4x4, k and v 4x2, gate, up and down 4x5; two query heads of 2 per key, twice."""
    row = 2 * 3 * (16 + 8 + 8 + 16 + 3 * 20)
    assert Price.of(SHAPE) == Price(row=row, key=3 * (2 * 4 + 2 * 4), head=2 * 4 * 7)
    assert (row, Price.of(SHAPE).key, Price.of(SHAPE).head) == (648, 48, 56)


def test_price_of_a_wide_head_dim():
    """Heads need not fill the hidden size."""
    shape = ModelConfig(
        vocab_size=9, hidden_size=6, intermediate_size=1, layers=1, heads=4, kv_heads=2, head_dim=8
    )
    attention = 6 * 32 + 2 * 6 * 16 + 32 * 6
    assert Price.of(shape) == Price(row=2 * (attention + 18), key=4 * 32, head=108)


@pytest.mark.parametrize("role", ROLES)
def test_weight_bytes_equal_the_files(pair, role):
    """All parameters but the embedding; a tied head is the embedding, and is read."""
    engine = pair.engine()
    shape = engine.shapes[ROLES.index(role)]
    names = dict(pair.oracles[role].model.named_parameters())
    count = sum(p.numel() for n, p in names.items() if "embed" not in n and "lm_head" not in n)
    assert weight_bytes(shape, 4) == 4 * (count + shape.vocab_size * shape.hidden_size)


def test_bytes_moved_by_hand():
    """Weights once a tick; KV written per row and read per key: 3 layers x 2 x 2 elements."""
    usage = book(small={"prompt": (2, 3), "sampled": (1, 3)})
    found = bytes_moved(usage, (2, 0), (SHAPE, SHAPE), 2)
    assert found == {"weights": 2 * weight_bytes(SHAPE, 2), "kv": (3 + 6) * 12 * 2}


def test_usage_json_round_trip(pair, delimiters, prompts):
    """What goes out comes back; anything else is refused."""
    engine = pair.engine(delimiters=delimiters, block_tokens=4)
    for done in engine.generate(
        prompts(4, seed=6), SamplingParams(max_tokens=20), Call(random_schedule)
    ):
        again = Usage.from_json(done.usage.to_json())
        assert np.array_equal(again.rows, done.usage.rows)
        assert np.array_equal(again.entries, done.usage.entries)
        assert again.rows.dtype == again.entries.dtype == np.int64


@pytest.mark.parametrize("broken", ["rows", "entries", "model", "kind", "pair", "text"])
def test_usage_json_refuses_anything_else(broken):
    """Missing or mis-shaped parts are errors, never zeros."""
    raw = Usage.alone("large", 3, 4).to_json()
    if broken in raw:
        del raw[broken]
    elif broken == "model":
        del raw["rows"]["small"]
    elif broken == "kind":
        del raw["rows"]["large"]["catchup"]
    elif broken == "pair":
        raw["entries"] = {role: [1, 2, 3] for role in ROLES}
    else:
        raw["rows"]["large"]["catchup"] = ["many", "more"]
    with pytest.raises((KeyError, TypeError, ValueError)):
        Usage.from_json(raw)


def test_usage_adds_up():
    """Sums are sums, and leave their parts alone."""
    one, two = Usage.alone("small", 2, 3), Usage.alone("small", 2, 3)
    total = one + two
    assert np.array_equal(total.rows, 2 * two.rows)
    assert np.array_equal(total.entries, 2 * two.entries)
    assert one.to_json() == two.to_json()
