"""What ``python -m bench.gpu_quick`` proves: checks of each op, and the search for a culprit."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bench.gpu_quick.agreement import first_wrong as first_wrong_token
from bench.gpu_quick.checks.check import failures, first_wrong
from bench.gpu_quick.checks.tensors import Maker
from bench.gpu_quick.parts.bisect import SWITCHES, culprits_of
from bench.gpu_quick.parts.ops import _SMALLEST, CHECKS
from bench.gpu_quick.replaced import NAMES
from kernels import norm, ops
from kernels.aot import registry
from kernels.backends.triton import TritonBackend
from tests.bench.gpu_quick_runs import without_gpu

pytestmark = without_gpu


def test_a_request_that_ends_early_is_wrong():
    """As one does whose logits are no numbers."""
    done = SimpleNamespace(prompt_token_ids=(2, 3), token_ids=(4,), finish_reason="error")
    assert str(first_wrong_token([done], None, "float32")) == (
        "request 0 ended at position 3: error"
    )


CPU = torch.device("cpu")


def makers(backend: ops.Backend) -> list[Maker]:
    return [Maker(shape, CPU, backend) for shape in _SMALLEST]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("op", [op for op in registry.OPS if op != "attention"])
def test_the_kernels_pass_the_checks(op: str):
    """The kernels themselves, in Triton's interpreter; attention's spans take it too long."""
    for make in makers(TritonBackend(CPU)):
        for check in CHECKS[op](make):
            assert failures(check) == [], (check.name, make.shape.name)


def test_decodes_pass_the_checks():
    assert failures(next(CHECKS["attention"](makers(TritonBackend(CPU))[1]))) == []


def test_checks_see_a_spoilt_kernel(monkeypatch):
    """A kernel that is launched with another constant than it should be."""
    right = norm.rms_norm
    monkeypatch.setattr(norm, "rms_norm", lambda x, weight, eps: right(x, weight, 0.3))
    told = failures(next(CHECKS["norm"](makers(TritonBackend(CPU))[0])))
    assert len(told) == 1 and told[0].startswith("output 0 [0, 0] is ")


class SeesTooMuch(ops.ReferenceBackend):
    def paged_attention(self, arena, plan, layer, query):
        longer = replace(plan, contexts=plan.contexts + 1)
        return super().paged_attention(arena, longer, layer, query)


def test_checks_see_a_key_too_many():
    """What follows a sequence's last key is NaN."""
    right, wrong = (
        failures(next(CHECKS["attention"](makers(backend)[1])))
        for backend in (ops.ReferenceBackend(), SeesTooMuch())
    )
    assert right == [] and wrong


class WritesElsewhere(ops.ReferenceBackend):
    def rope_kv(self, qkv, bias, rope, positions, arena, *rest):
        query = super().rope_kv(qkv, bias, rope, positions, arena, *rest)
        arena[-1, -1] = 1.0
        return query


def test_checks_see_a_key_in_the_wrong_place():
    check = next(CHECKS["rope_kv"](makers(WritesElsewhere())[1]))
    assert failures(check) == ["output 3 [0] is 1, expected 0"]


def test_checks_see_bits_that_depend_on_neighbours():
    check = next(CHECKS["norm"](makers(ops.ReferenceBackend())[0]))
    leaning = replace(
        check, run=lambda rows: tuple(x * (1 + (len(rows) == 1) / 128) for x in check.run(rows))
    )
    assert failures(check) == []
    assert "the last row alone has other bits" in " ".join(failures(leaning))


def test_what_is_no_number_is_wrong():
    right = torch.ones(2, 3)
    spoilt = right.clone()
    spoilt[1, 2] = float("nan")
    assert first_wrong(0, right, right.double(), 0.0, 0.0) is None
    wrong = first_wrong(0, spoilt, right.double(), 0.1, 0.1)
    assert wrong is not None and wrong.index == (1, 2)


@pytest.mark.parametrize(
    "culprits", [["graphs"], ["plan_ahead", "fused_head"], ["linear"], ["rope_kv", "sample"], []]
)
def test_bisection_finds_the_smallest_set(culprits: list[str]):
    """Where each culprit by itself makes it fail."""
    trials = []

    def trial(switches, replaced):
        trials.append((tuple(switches), tuple(replaced)))
        assert not replaced or "graphs" in switches  # references allow no recording
        left = set(culprits) - set(switches) - set(replaced)
        return "wrong" if left else None

    found, wrong, _ = culprits_of(trial)
    assert sorted(found) == sorted(culprits)
    assert wrong == ("wrong" if culprits else None)
    assert len(trials) < 2 * (len(SWITCHES) + len(NAMES))


def test_bisection_says_where_it_finds_nothing():
    assert culprits_of(lambda *_: "wrong")[::2] == (
        [],
        "it fails with every switch off and every op replaced as well",
    )
