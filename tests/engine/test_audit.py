"""The audit: scores against from-scratch passes, rollbacks, streams, books; judge, audit-only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.evaluate import evaluate, task_tests
from engine import Completion, Engine, EngineConfig, SamplingParams, SteerError
from engine.accounting.ledger import Usage
from engine.accounting.pricing import Price, pair_flops
from engine.models.passes import Batch
from engine.replay.replay import replay
from engine.replay.trace import Trace
from engine.requests.audit_log import FORESEEN
from engine.routing.audit import Audit, step_score
from kernels import ops

TESTS = task_tests("test", 40, seed=9)
PROMPTS = [p.prompt for p in TESTS.problems]
MARK = -4.0


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("tiny", config=EngineConfig(prefix_cache=False, check_every=1))


def run(engine: Engine, policy: str, audit: str = "off", **params: int) -> list[Completion]:
    wanted = SamplingParams(max_tokens=TESTS.max_tokens, audit=audit, **params)
    return engine.generate(PROMPTS, wanted, policy)


def from_scratch(engine: Engine, model: int, tokens: list[int]) -> torch.Tensor:
    """fp64 [tokens, vocabulary]: log-probabilities of what follows each token, in one pass."""
    pair = engine.lanes[model].runner
    layout = engine.arena.layout(pair.decoder.config, model, engine.config.block_tokens)
    n, width = len(tokens), -(-len(tokens) // engine.config.block_tokens)
    # Rows of its own, for this text alone: a copy of the engine's arena would be of 800 MB.
    held = -(-width // layout.slots) * layout.slab_rows
    rows = engine.arena.rows(pair.decoder.config)[:held].clone().fill_(float("nan"))
    ints = torch.arange(n, dtype=torch.int32)
    plan = ops.AttentionPlan(
        layout,
        torch.arange(width, dtype=torch.int32)[None],
        torch.tensor([0, n], dtype=torch.int32),
        torch.tensor([n], dtype=torch.int32),
        ints,
        ops.Work.counted(np.array([n]), np.array([n])),
        ops.Splits.choose(1, layout.kv_heads),
    )
    batch = Batch(torch.tensor(tokens, dtype=torch.int32), ints, ints, plan)
    logits = pair.decoder.forward(batch, rows)[:, : engine.tokenizer.size]
    return logits.double().log_softmax(-1)


def test_scores_are_those_of_both_models_from_scratch(engine: Engine):
    """Of every step of the small model that the large one has read, for three ways of reading."""
    for policy, audit in (("random:0.4", "score"), ("judge:-99", "off"), ("audit:-99", "off")):
        compared = 0
        for done in run(engine, policy, audit)[:8]:
            tokens = [*done.prompt_token_ids, *done.token_ids]
            says = [from_scratch(engine, model, tokens) for model in range(2)]
            for step in done.steps:
                assert not step.audit or step.model == "small"
                for at, pair in enumerate(step.audit, step.position):
                    own = [float(logs[at - 1, tokens[at]]) for logs in says]
                    exact = pair == pytest.approx(own, abs=1e-3)
                    # Of a boundary that it drew from itself, the least of what was kept.
                    least = float(says[1][at - 1].topk(FORESEEN).values[-1])
                    bound = own[1] < least and pair == pytest.approx((own[0], least), abs=1e-3)
                    assert exact or (at == step.position and bound)
                    compared += 1
            if policy != "random:0.4":  # these read everything, the end too
                assert all(step.audit for step in done.steps)
        assert compared > 50


def test_scoring_changes_no_text_and_is_in_the_books(engine: Engine):
    plain, scored = run(engine, "steer"), run(engine, "steer", "score")
    assert [c.token_ids for c in plain] == [c.token_ids for c in scored]
    price = Price.of(engine.shapes[1])
    for before, after in zip(plain, scored, strict=True):
        known = sum(len(s.audit) for s in after.steps)
        assert after.usage.audited == known and not any(s.audit for s in before.steps)
        flops = [
            [pair_flops(c.usage, engine.shapes, a) for a in ("decode", "catchup")]
            for c in (before, after)
        ]
        assert flops[0][0] == flops[1][0]
        assert flops[1][1] - flops[0][1] == known * price.head


def test_a_rollback_gives_the_doubted_step_to_the_large_model(engine: Engine):
    """With random handoffs alone most answers are wrong; rolled back, what was read is right."""
    plain, checked = run(engine, "random:0.3"), run(engine, "random:0.3", f"rollback:min:{MARK}")
    taken = [r for c in checked for r in c.retracted]
    assert len(taken) > 3
    for done in checked:
        for retracted in done.retracted:
            (step,) = [s for s in done.steps if s.position == retracted.position]
            assert step.model == "large" and step.reason.startswith("audit: min log p")
            assert retracted.score < MARK and retracted.dropped >= len(retracted.token_ids)
            assert step.token_ids != retracted.token_ids
        for step in done.steps:
            assert not step.audit or step_score("min", step.audit) >= MARK
    right = [
        sum(map(TESTS.is_correct, TESTS.problems, (c.text for c in found)))
        for found in (plain, checked)
    ]
    assert right[1] > right[0]


@pytest.mark.parametrize("policy", ["judge", "audit"])
def test_who_reads_everything_finds_every_error(engine: Engine, policy: str):
    """At a good mark the answers are the large model's, and at a mark below all they are not."""
    strict = evaluate(engine, engine.policy(f"{policy}:{MARK}"), TESTS)
    lax = evaluate(engine, engine.policy(f"{policy}:-99"), TESTS)
    small = evaluate(engine, engine.policy("small"), TESTS)
    assert strict.accuracy > 0.95 and lax.accuracy == small.accuracy < 0.7
    assert [c.token_ids for c in lax.completions] == [c.token_ids for c in small.completions]
    assert lax.large_step_share == 0 < strict.large_step_share < 0.5
    # Everything was read by the large model: it costs at least about as much as its own answers.
    large = evaluate(engine, engine.policy("large"), TESTS)
    assert strict.flops["catchup"] > 0.95 * large.flops["catchup"]


@pytest.mark.parametrize("policy", ["judge:-5", "audit:-5", "steer"])
def test_rows_that_are_wanted_are_never_taken_from_the_cache(policy: str):
    """Who finds what others have read scores as many rows, and costs as much but for the prompt."""
    engine = Engine("tiny", config=EngineConfig(block_tokens=4, check_every=1))
    tests = task_tests("test", 20, seed=4)
    audit = "rollback:min:-5" if policy == "steer" else "off"
    alone = Engine("tiny", config=EngineConfig(block_tokens=4, prefix_cache=False))
    wanted = evaluate(alone, alone.policy(policy), tests, audit=audit)
    evaluate(engine, engine.policy("threshold:max_prob:0.9"), tests)
    for _ in range(2):
        found = evaluate(engine, engine.policy(policy), tests, audit=audit, count_spared=True)
        assert [c.text for c in found.completions] == [c.text for c in wanted.completions]
        assert found.usage.to_json() == wanted.usage.to_json()
        assert found.flops == wanted.flops
        for one, other in zip(found.completions, wanted.completions, strict=True):
            assert [s.audit for s in one.steps] == [s.audit for s in other.steps]


def test_a_stream_never_takes_a_word_back(engine: Engine):
    """Unaudited text is held until it has passed."""
    params = SamplingParams(max_tokens=TESTS.max_tokens, audit=f"rollback:min:{MARK}")
    retracted = 0
    for prompt in PROMPTS[:7]:
        for policy in ("random:0.3", f"judge:{MARK}"):
            events = list(engine.stream(prompt, params, policy))
            done = events[-1].completion
            assert done and "".join(e.text for e in events) == done.text
            retracted += len(done.retracted)
    assert retracted > 3


@pytest.mark.parametrize("cap", [{"max_large_share": 0.0}, {"max_flops": 10}])
def test_a_step_that_no_budget_is_left_for_stands(engine: Engine, cap: dict):
    """The small model writes it again, once: what it writes then is not taken back."""
    wanted = SamplingParams(max_tokens=TESTS.max_tokens, **cap)
    ids = [engine.submit(prompt, wanted, f"judge:{MARK}") for prompt in PROMPTS[:8]]
    done: list[Completion] = []
    for _ in range(500):
        done += engine.step()
    assert {c.request_id for c in done} == set(ids)
    assert any(c.retracted for c in done)
    for completion in done:
        assert {s.model for s in completion.steps} == {"small"}
        cut = [r.position for r in completion.retracted]
        assert cut == sorted(set(cut))


def test_several_samples_drawn_and_a_thinking_part(engine: Engine):
    """Rollbacks under temperature, with samples and forced tokens, leave sound books."""
    checked = run(
        engine, "random:0.3", f"rollback:ratio:{MARK}", n=2, seed=3
    )  # the fixture proves the core's books after every tick
    assert len(checked) == 2 * len(PROMPTS)
    drawn = SamplingParams(
        max_tokens=60, temperature=0.8, seed=5, audit="rollback", think_end="?", max_think_tokens=9
    )
    for done in engine.generate(PROMPTS, drawn, "judge"):
        assert done.finish_reason in ("stop", "length")


def test_what_the_trace_holds(engine: Engine, tmp_path: Path):
    path = tmp_path / "t.jsonl"
    engine.generate(
        PROMPTS, SamplingParams(max_tokens=TESTS.max_tokens, audit="score"), "steer", trace=path
    )
    assert '"audit": [[' in path.read_text()
    trace = Trace.read(path)
    ran = sum((r.usage for r in trace.requests), Usage())
    assert ran.audited > 0 and replay(trace, engine.policy("steer")).changed == 0


def test_names_and_bad_audits(engine: Engine):
    assert Audit.parse("rollback:ratio:-3") == Audit("rollback", "ratio", -3.0)
    for text in ("on", "rollback:min", "rollback:luck:-3", "rollback:min:low", "score:min:-3"):
        with pytest.raises(SteerError, match="audit must be off, score, rollback"):
            SamplingParams(audit=text)
    for name in ("judge:low", "judge:luck:-3", "audit:1:2:3"):
        with pytest.raises(SteerError, match=r"expected (judge|audit):MARK"):
            engine.policy(name)
    with pytest.raises(SteerError, match="audit must be text"):
        SamplingParams(audit=None)  # type: ignore[arg-type]
