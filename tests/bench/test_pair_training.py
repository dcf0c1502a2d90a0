"""The recipe of the embedded pair: heads that look back, halves that are joined, checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.pair_training.accuracy import step_accuracy
from bench.pair_training.batches import Batches
from bench.pair_training.grow import grow
from bench.pair_training.join import join, silence
from bench.pair_training.loop import Training, learning_rate
from bench.pair_training.model import build_model
from bench.pair_training.muon import Muon, orthogonal
from bench.pair_training.seen import seen_before
from bench.pair_training.spec import LARGE, ROLES, SMALL, Spec
from bench.tasks import hops
from bench.tasks.problem import EOS, split_of
from bench.tasks.registry import TASKS
from bench.tasks.tokenizer import ALPHABET, GRAPHS

TINY = [replace(spec, updates=6, decay=2, short=2) for spec in SMALL]


def texts(spec: Spec, count: int) -> list[torch.Tensor]:
    batches = Batches(spec, 3, "open")
    return [torch.tensor(batches.encode(p)[0]) for p in batches.problems(0)[:count]]


def heads(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[heads, length, length]: the attention of layer 0."""
    model.set_attn_implementation("eager")
    return model(input_ids=ids[None], output_attentions=True).attentions[0][0]


def test_heads_start_out_looking_back():
    spec = SMALL[1]
    (ids,) = texts(spec, 1)
    found = heads(build_model(spec, 1), ids)
    plain = heads(build_model(replace(spec, look_back=()), 1), ids)
    for head, distance in enumerate(spec.look_back):
        assert found[head].diagonal(-distance)[4:].min() > 0.8
        assert plain[head].diagonal(-distance)[4:].mean() < 0.5


def test_the_optimizer_is_pytorchs_in_fp32():
    """Some steps of both from the same start; PyTorch's rounds its iteration to bf16."""
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((24, 8), (8, 24), (8, 24), (16, 16))]
    settings = {"lr": 0.02, "weight_decay": 0.05, "momentum": 0.95}
    ours, theirs = ([torch.nn.Parameter(m.clone()) for m in start] for _ in range(2))
    optimizers = Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other, old in zip(ours, theirs, start, strict=True):
        assert (mine - other).norm() < 0.02 * (other - old).norm()


def test_orthogonal_directions():
    torch.manual_seed(0)
    for shape in ((3, 20, 6), (2, 6, 20)):
        found = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert found.min() > 0.5 and found.max() < 1.3


def test_value_biases_become_weights():
    """Silence in, silence out; nearly the same on the texts, as the joined models need."""
    spec = SMALL[0]
    model = build_model(spec, 1)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.bias.normal_(0, 0.05)
    fresh = texts(spec, 8)
    before = [model(input_ids=ids[None]).logits for ids in fresh]
    assert 0 < silence(model, texts(replace(spec, short=1), 32)) < 0.3
    assert not any(layer.self_attn.v_proj.bias.any() for layer in model.model.layers)
    for ids, old in zip(fresh, before, strict=True):
        assert (model(input_ids=ids[None]).logits - old).abs().max() < 0.1 * old.abs().max()


@pytest.mark.parametrize("role", ROLES)
def test_a_joined_model_is_its_halves(role: str):
    """On the symbols of one half it says what that half says, and nothing about the other's."""
    halves = [build_model(spec, seed) for seed, spec in enumerate(ROLES[role])]
    with torch.no_grad():
        for half in halves:
            for layer in half.model.layers:
                layer.input_layernorm.weight.uniform_(0.5, 1.5)
    one = join(halves[0], halves[1], ROLES[role][0].vocabulary)
    graphs = [i for i, symbol in enumerate(ALPHABET) if symbol in (*GRAPHS, EOS)]
    numbers = [i for i in range(1, len(ALPHABET)) if ALPHABET[i] not in GRAPHS]
    for half, spec, mine in zip(halves, ROLES[role], (numbers, graphs), strict=True):
        other = [i for i in range(len(ALPHABET)) if i not in mine]
        for ids in texts(spec, 4):  # the end of sequence, which both know, is never read
            alone, joined = (m(input_ids=ids[None, :-1]).logits for m in (half, one))
            torch.testing.assert_close(joined[..., mine], alone[..., mine], atol=2e-3, rtol=0)
            assert joined[..., other].abs().max() < 1e-4


def test_a_grown_model_says_what_the_small_one_did():
    old = build_model(SMALL[1], 5)
    wide = replace(LARGE[1], layers=SMALL[1].layers)
    new = grow(old, wide, 1)
    for ids in texts(SMALL[1], 4):
        before, after = (m(input_ids=ids[None]).logits for m in (old, new))
        torch.testing.assert_close(after[..., : len(ALPHABET)], before, atol=1e-4, rtol=1e-4)
    assert sum(p.numel() for p in new.parameters()) > 2 * sum(p.numel() for p in old.parameters())


def test_a_deeper_model_looks_up_once_more():
    """The layers that are new attend as the last of the old ones does, and change nothing else."""
    new = grow(build_model(SMALL[1], 1), LARGE[1], 1)
    last, added = new.model.layers[SMALL[1].layers - 1], new.model.layers[-1]
    for name in ("k_proj", "o_proj"):
        known, copied = (getattr(layer.self_attn, name).weight for layer in (last, added))
        assert known.any() and torch.equal(known, copied)
    assert not added.mlp.down_proj.weight.any()


def test_what_single_look_ups_find():
    """The person between, where a hop goes two on; the reached one otherwise."""
    batches = Batches(LARGE[1], 1, "open")
    problem = TASKS["hops"].problems("train", 1)[0]
    problem = replace(
        problem, prompt="a>bb>cc>dd>ac@a/aA>>B@C<.\n\n", steps=("aA>>.", "cB@.", "aC<.", "d")
    )
    row, prompt = batches.encode(problem)
    assert hops.first_found(problem.prompt) == ["b", "a", "d"]
    places = dict(batches.looked_up(problem, prompt))
    assert [ALPHABET[token] for token in places.values()] == ["b", "a", "d"]
    assert [ALPHABET[row[place]] for place in places] == ["c", "a", "d"]


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path):
    """As if it had not been interrupted, to the last bit."""
    whole = Training(TINY[1], 1, "open")
    whole.run()
    path = tmp_path / "run.checkpoint"
    first = Training(TINY[1], 1, "open", path)
    first.run(until=3)
    first.save()
    second = Training(TINY[1], 1, "open", path)
    assert second.update == 3 and second.tokens == first.tokens > 0
    second.run()
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_rate_rises_stays_and_falls():
    spec = replace(SMALL[1], updates=1000, decay=200)
    rates = [learning_rate(u, spec) for u in range(1001)]
    assert rates[0] == 0.01 and rates[99:801] == [1.0] * 702
    assert rates[1000] == pytest.approx(0.02) and rates[800:] == sorted(rates[800:], reverse=True)


def test_batches_hold_training_problems_only():
    for spec in (*SMALL, *LARGE):
        batches, again = Batches(spec, 7, "open"), Batches(spec, 7, "open")
        for update in range(4):
            problems = batches.problems(update)
            assert all(split_of(p.prompt) == "train" and p.task in spec.shares for p in problems)
            assert [p.prompt for p in problems] == [p.prompt for p in again.problems(update)]


def test_what_was_seen_is_counted():
    """Six batches hold a few facts of arithmetic and no graph of the test set."""
    assert 0 < seen_before(TINY[0], 1, "open", 50)["arithmetic"] < 0.2
    assert seen_before(TINY[1], 1, "open", 20) == {"hops": 0, "planning": 0}


def test_an_untrained_model_gets_no_step_right():
    batches = Batches(TINY[0], 0, "open")
    found = step_accuracy(build_model(SMALL[1], 1), batches, 10, 1)
    assert found.keys() == {"arithmetic", "hops", "planning"}
    assert found["hops"].keys() == {"copy", "easy", "medium", "hard", "problem"}
    assert all(share < 0.3 for kinds in found.values() for share in kinds.values())
