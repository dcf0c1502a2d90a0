"""The engine through its public face, on the embedded pair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.tasks import arithmetic
from engine import Boundary, Engine, EngineConfig, Random, SamplingParams
from engine.accounting.ledger import Usage
from engine.config import ModelConfig
from engine.config.named_models import NAMED_MODELS
from engine.device.kv_arena import ArenaGeometry
from engine.replay.trace import Trace

PARAMS = SamplingParams(max_tokens=80)
PROBLEMS = arithmetic.problems("test", 24, seed=5)
PROMPTS = [p.prompt for p in PROBLEMS]


@pytest.fixture
def engine() -> Engine:
    return Engine("tiny", config=EngineConfig(check_every=1))


def texts(engine: Engine, prompts: list[str], policy: object = "steer") -> list[str]:
    return [c.text for c in engine.generate(prompts, PARAMS, policy)]


def test_steps_join_to_the_text(engine: Engine):
    for completion in engine.generate(PROMPTS, PARAMS, Random(0.5)):
        assert "".join(s.text for s in completion.steps) == completion.text
        ids = [i for s in completion.steps for i in s.token_ids]
        assert tuple(ids) == completion.token_ids
        assert completion.steps[0].position == len(completion.prompt_token_ids)


def test_a_step_names_its_writer_and_its_reason(engine: Engine):
    completions = engine.generate(PROMPTS, PARAMS, "threshold:max_prob:0.9")
    steps = [s for c in completions for s in c.steps]
    assert {s.model for s in steps} == {"small", "large"}
    for step in steps:
        assert step.signals is not None
        assert (step.signals.max_prob >= 0.9) == (step.model == "small")
        assert step.reason.startswith("max_prob")


@pytest.mark.costs
def test_policies_that_do_not_read_have_no_signals(engine: Engine):
    completion = engine.generate(PROMPTS[:1], PARAMS, "large")[0]
    assert all(s.signals is None and s.model == "large" for s in completion.steps)
    assert completion.usage.rows[0].sum() == 0


def test_steer_reports_posteriors(engine: Engine):
    for completion in engine.generate(PROMPTS, PARAMS, "steer"):
        assert all(s.posterior is not None and 0 <= s.posterior <= 1 for s in completion.steps)


def test_batch_and_alone_give_the_same_text(engine: Engine):
    together = texts(engine, PROMPTS, "threshold:max_prob:0.9")
    alone = [texts(engine, [p], "threshold:max_prob:0.9")[0] for p in PROMPTS]
    assert together == alone


def test_a_callable_sees_numbers_and_decides(engine: Engine):
    seen: list[Boundary] = []

    def every_other(boundary: Boundary) -> str:
        seen.append(boundary)
        return "large" if boundary.step % 2 else "small"

    completion = engine.generate(PROMPTS[:1], PARAMS, every_other)[0]
    expected = ["large" if i % 2 else "small" for i in range(len(completion.steps))]
    assert [s.model for s in completion.steps] == expected
    assert [b.step for b in seen] == list(range(len(seen)))
    assert seen[0].previous is None and seen[1].previous == "small"
    assert seen[0].catch_up == seen[0].prompt_tokens


def test_two_engines_live_in_one_process():
    """No process-wide state: their steps interleave and their texts are those of one alone."""
    first = Engine("tiny", config=EngineConfig(block_tokens=16))
    second = Engine("tiny", config=EngineConfig(block_tokens=5, max_sequences=3))
    expected = texts(Engine("tiny"), PROMPTS, "threshold:max_prob:0.9")
    ids = [
        [e.submit(p, PARAMS, "threshold:max_prob:0.9") for p in PROMPTS] for e in (first, second)
    ]
    done: list[dict[int, str]] = [{}, {}]
    while any(len(d) < len(PROMPTS) for d in done):
        for engine, found in zip((first, second), done, strict=True):
            found |= {c.request_id: c.text for c in engine.step()}
    for found, order in zip(done, ids, strict=True):
        assert [found[i] for i in order] == expected


def test_an_arena_for_one_request_serves_all():
    """Lending under pressure: slabs change hands and KV is recomputed, the texts stay."""
    tight = EngineConfig(
        arena_tokens=112, eager_admission=True, block_tokens=8, max_context=112, check_every=1
    )
    engine = Engine("tiny", config=tight)
    expected = texts(Engine("tiny"), PROMPTS, Random(0.5))
    assert texts(engine, PROMPTS, Random(0.5)) == expected
    assert engine.scheduler.counters()["lent_slabs"] > 0


def test_abort_ends_one_request_and_no_other(engine: Engine):
    expected = texts(engine, PROMPTS, "small")
    ids = [engine.submit(p, PARAMS, "small") for p in PROMPTS]
    found = {}
    for tick in range(1000):
        found |= {c.request_id: c for c in engine.step()}
        if tick == 10:
            engine.abort(ids[3])
        if len(found) == len(ids):
            break
    reasons = [found[i].finish_reason for i in ids]
    assert reasons[3] == "abort" and reasons.count("stop") == len(ids) - 1
    for index, request in enumerate(ids):
        assert index == 3 or found[request].text == expected[index]


def test_interrupt_leaves_a_working_engine(engine: Engine):
    """An exception in the middle ends what runs; the books are right and the engine goes on."""

    def interrupt(boundary: Boundary) -> str:
        if boundary.step == 3:
            raise KeyboardInterrupt
        return "small"

    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, PARAMS, interrupt)
    engine.scheduler.check_integrity()
    assert engine.scheduler.pool.live(0) == engine.scheduler.pool.live(1) == 0
    assert engine.generate(PROMPTS[:2], PARAMS, "small")[0].finish_reason == "stop"


def test_a_reading_policy_reads_again_after_a_truncation(engine: Engine):
    """Taken back to where a step began, the boundary is read once more and decided anew."""
    expected = engine.generate(PROMPTS[:1], PARAMS, "threshold:max_prob:0.9")[0]
    request = engine.submit(PROMPTS[0], PARAMS, "threshold:max_prob:0.9", settle_at_once=False)
    third, found = expected.steps[2].position, []
    while engine.scheduler.sequence(request).length < third + 3:
        found += engine.step()
    engine.scheduler.truncate(request, third)
    while not found:
        found += engine.step()
    assert found[0].text == expected.text
    assert [s.model for s in found[0].steps] == [s.model for s in expected.steps]
    assert found[0].usage.count("small", "discarded") > 0


def test_a_policy_that_raises_in_a_step_ends_its_request_only(engine: Engine):
    """The exception passes through; the neighbours' events are not lost with it."""

    def broken(boundary: Boundary) -> str:
        raise ZeroDivisionError

    expected = texts(engine, PROMPTS[:3], "small")
    good = [engine.submit(p, PARAMS, "small") for p in PROMPTS[:3]]
    bad = engine.submit(PROMPTS[3], PARAMS, broken)
    found, raised = {}, 0
    while len(found) < 4:
        try:
            found |= {c.request_id: c for c in engine.step()}
        except ZeroDivisionError:
            raised += 1
    assert raised == 1 and found[bad].finish_reason == "abort"
    assert [found[i].text for i in good] == expected


def test_length_and_stop_ids(engine: Engine):
    short = engine.generate(PROMPTS[:1], SamplingParams(max_tokens=4), "small")[0]
    assert short.finish_reason == "length" and len(short.token_ids) == 4
    delimiter = engine.tokenizer.encode("\n\n")[0]
    stopped = engine.generate(
        PROMPTS[:1], SamplingParams(max_tokens=80, stop_token_ids=(delimiter,)), "small"
    )[0]
    assert stopped.finish_reason == "stop" and stopped.token_ids[-1] == delimiter
    assert len(stopped.steps) == 1


def test_priorities_go_first():
    engine = Engine("tiny", config=EngineConfig(max_sequences=1, max_tick_tokens=64))
    late = engine.submit(PROMPTS[0], PARAMS, "small", priority=1)
    early = engine.submit(PROMPTS[1], PARAMS, "small", priority=0)
    order: list[int] = []
    while len(order) < 2:
        order += [c.request_id for c in engine.step()]
    assert order == [early, late]


def test_the_trace_says_what_the_completions_say(engine: Engine, tmp_path: Path):
    path = tmp_path / "trace.jsonl"
    completions = engine.generate(PROMPTS, PARAMS, Random(0.4), trace=path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0]["schema"] == "steer-trace/1" and rows[0]["policy"] == "random"
    steps = [r for r in rows if r["type"] == "step"]
    assert len(steps) == sum(len(c.steps) for c in completions)
    trace = Trace.read(path)
    total = sum((r.usage for r in trace.requests), Usage())
    expected = sum((c.usage for c in completions), Usage())
    assert (total.rows == expected.rows).all() and (total.entries == expected.entries).all()
    assert sum(r.large_steps for r in trace.requests) == sum(s["model"] == "large" for s in steps)


def test_bfloat16_runs(engine: Engine):
    narrow = Engine("tiny", dtype="bfloat16")
    assert narrow.arena.bytes < engine.arena.bytes
    assert all(c.finish_reason == "stop" for c in narrow.generate(PROMPTS, PARAMS, "small"))


def test_slab_geometry_of_the_pair_to_think_of():
    """Nine small blocks in a slab of one large block, a quarter MiB left over."""
    shapes = NAMED_MODELS["qwen-1.5b"], NAMED_MODELS["qwen-32b"]
    geometry = ArenaGeometry.of(shapes, EngineConfig(block_tokens=64), element_bytes=2)
    assert geometry.slots == (9, 1)
    assert geometry.slab_bytes == 16 * 2**20
    assert geometry.slab_bytes - 9 * geometry.block_bytes[0] == 2**18


def test_views_of_both_models_cover_the_same_memory():
    """Head widths that divide neither each other nor the larger block."""
    small = ModelConfig(10, 40, 8, 3, 5, 1, 24)
    large = ModelConfig(10, 40, 8, 2, 4, 2, 40)
    geometry = ArenaGeometry.of((small, large), EngineConfig(block_tokens=7), 4)
    for shape, block in zip((small, large), geometry.block_bytes, strict=True):
        assert geometry.slab_bytes % (shape.head_dim * 4) == 0
        assert block == 7 * shape.kv_bytes_per_token(4) <= geometry.slab_bytes


def test_the_prefix_cache_changes_no_text():
    """A second round finds the prompts' full blocks, computes less and writes the same."""
    engine = Engine("tiny", config=EngineConfig(block_tokens=4, check_every=1))
    first = engine.generate(PROMPTS, PARAMS, "threshold:max_prob:0.9")
    second = engine.generate(PROMPTS, PARAMS, "threshold:max_prob:0.9")
    assert [c.text for c in first] == [c.text for c in second]
    assert sum(c.usage.cached.sum() for c in first) < sum(c.usage.cached.sum() for c in second)
    before, after = (sum((c.usage for c in done), Usage()) for done in (first, second))
    assert (after.rows[:, :, 0].sum(1) < before.rows[:, :, 0].sum(1)).all()
    for usage in (before, after):
        assert (usage.spared[:, :, 0].sum(1) == usage.cached).all()
        assert usage.unspared().unspared().to_json() == usage.unspared().to_json()
    assert after.unspared().to_json() == before.unspared().to_json()
    assert Usage.from_json(after.to_json()).to_json() == after.to_json()


def test_the_prefix_cache_can_be_switched_off():
    engine = Engine("tiny", config=EngineConfig(block_tokens=4, prefix_cache=False))
    for _ in range(2):
        done = engine.generate(PROMPTS[:3], PARAMS, "small")
    assert all(c.usage.cached.sum() == 0 for c in done)
    assert engine.scheduler.pool.cached(0) == 0
