"""Models whose tokens are other pieces: each reads its own, and text crosses between them."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from engine import (
    Boundary,
    Engine,
    EngineConfig,
    Prompt,
    Random,
    SamplingParams,
    SteerError,
    Usage,
    Window,
)
from engine.routing.policies import Always, Call, Threshold

from .conftest import DELIMITERS
from .other_pieces import POLICIES, OtherPieces, letters, pieces_tokenizer


@pytest.fixture(scope="module")
def other_pieces(tmp_path_factory) -> OtherPieces:
    return OtherPieces(tmp_path_factory.mktemp("pieces"))


@pytest.mark.parametrize("policy", ["large", "random", "threshold"])
def test_each_model_reads_its_own_tokens(other_pieces: OtherPieces, policy: str):
    engine = other_pieces.engine(block_tokens=4, check_every=1)
    prompts = [letters(random.Random(i)) for i in range(8)]
    chosen = {"threshold": Threshold("max_prob", 0.5)}.get(policy, POLICIES[policy])
    done = engine.generate(prompts, SamplingParams(max_tokens=48), chosen)
    tokens = [other_pieces.check(p, c) for p, c in zip(prompts, done, strict=True)]
    assert sum(tokens) > 40
    joined = other_pieces.tokenizers[0]
    assert any(len(joined.write(joined.bytes_of(s.token_ids)) or ()) for c in done for s in c.steps)


def test_the_books_add_up(other_pieces: OtherPieces):
    """Rows by kind, and tokens encoded again, against what the text itself says."""
    engine = other_pieces.engine(prefix_cache=False)
    prompts = [letters(random.Random(i)) for i in range(6)]
    done = engine.generate(prompts, SamplingParams(max_tokens=60), Random(0.5, seed=1))
    small, large = other_pieces.tokenizers
    for prompt, completion in zip(prompts, done, strict=True):
        usage, own = completion.usage, len(completion.token_ids)
        by_large = [s for s in completion.steps if s.model == "large"]
        assert usage.count("small", "sampled") == own - sum(len(s.token_ids) for s in by_large)
        assert usage.retokenised[0] >= sum(len(s.token_ids) for s in by_large)
        first = next((s.position for s in by_large), None)
        if first is None:
            assert usage.crossings == 0 and not usage.rows[1].any()
            continue
        assert usage.count("large", "prompt") in (
            len(large.encode(prompt)) - 1,
            len(large.encode(prompt)),
        )
        # What crossed was written by the small model in between.
        between = completion.steps[: completion.steps.index(by_large[-1])]
        runs, text = [], b""
        for step in [*between, None]:
            if step is None or step.model == "large":
                runs.append(text)
                text = b""
            else:
                text += small.bytes_of(step.token_ids)
        assert usage.retokenised[1] == sum(len(large.write(t) or ()) for t in runs)
        assert usage.crossings == sum(bool(t) for t in runs) + len(by_large)
    total = sum((c.usage for c in done), Usage())
    assert Usage.from_json(total.to_json()).to_json() == total.to_json()
    older = {k: v for k, v in total.to_json().items() if k not in ("retokenised", "crossings")}
    assert Usage.from_json(older).crossings == 0


def test_what_cannot_cross_stays_with_the_small_model(tmp_path: Path, other_pieces: OtherPieces):
    """Text that the large model has no tokens for; and a context that its text fills."""
    large = tmp_path / "large"
    shutil.copytree(other_pieces.folders[1], large)
    tokenizer = pieces_tokenizer()
    raw = json.loads(tokenizer.to_str())
    kept = {t: i for t, i in raw["model"]["vocab"].items() if t not in "efgh"}
    raw["model"]["vocab"] = kept
    (large / "tokenizer.json").write_text(json.dumps(raw))
    config = EngineConfig(delimiters=DELIMITERS, retokenize=True, check_every=1)
    engine = Engine("custom", small=other_pieces.folders[0], large=large, config=config)
    flip = Call(lambda b: "large" if b.step % 2 else "small")
    done = engine.generate(["abc", "1ab2"], SamplingParams(max_tokens=80), flip)
    reasons = {s.reason for c in done for s in c.steps}
    assert any("cannot write this text" in r for r in reasons)
    assert all(len(c.token_ids) == 80 for c in done)

    pairs = other_pieces.engine(max_context=48, check_every=1)
    (done,) = pairs.generate(["1" * 20], SamplingParams(max_tokens=28), POLICIES["random"])
    assert done.finish_reason == "length" and len(done.token_ids) == 28


def test_a_prompt_that_fills_the_large_models_context(other_pieces: OtherPieces):
    engine = other_pieces.engine(max_context=24, check_every=1)
    small, large = other_pieces.tokenizers
    prompt = Prompt(tuple(small.encode("1")), tuple(large.encode("1" * 24)))
    (done,) = engine.generate([prompt], SamplingParams(max_tokens=20), "large")
    assert all(s.model == "small" for s in done.steps) and len(done.token_ids) == 20
    assert "context of 24 tokens is full" in done.steps[0].reason
    prompt = Prompt(tuple(small.encode("1")), tuple(large.encode("1" * 18)))
    (done,) = engine.generate([prompt], SamplingParams(max_tokens=23), "large")
    assert {s.model for s in done.steps} == {"small", "large"} and len(done.token_ids) == 23
    assert "context of 24 tokens is full" in done.steps[-1].reason


def tight_engine(other_pieces: OtherPieces, seed: int, rng: random.Random) -> Engine:
    return other_pieces.engine(
        block_tokens=4,
        arena_tokens=rng.choice([112, 160]),
        max_context=96,
        max_sequences=6,
        eager_admission=seed != 1,
        max_tick_tokens=24,
        check_every=1,
        prefix_cache=bool(seed % 2),
        plan_ahead=rng.choice(["off", "both"]),
        overlap=bool(seed != 2),
        lane_policy=rng.choice(["latency", "throughput", "weighted", "auto"]),
    )


@pytest.mark.parametrize("seed", range(3))
def test_soak_in_a_tight_arena(other_pieces: OtherPieces, seed: int):
    """Random requests, policies, aborts and deadlines; each that lives is right."""
    rng = random.Random(seed)
    engine = tight_engine(other_pieces, seed, rng)
    asked: dict[int, str] = {}
    ended: dict[str, int] = {}
    checked, known = 0, set()
    policies = [
        Call(lambda b: rng.choice(["small", "large"])),
        Always("large"),
        Random(0.6, seed=seed),
        Threshold("max_prob", 0.5, window=Window("probe", 3)),
        Call(lambda b: rng.choice(["small", "large"]), reads=False),
    ]
    while asked or len(known) < 60:
        while len(known) < 60 and len(asked) < 12:
            prompt = letters(rng, 40)
            params = SamplingParams(
                max_tokens=rng.randint(3, 40),
                max_step_tokens=rng.choice([0, 0, 3]),
                stop=rng.choice([(), (), ("a1", "bb")]),
            )
            late = rng.choice([None, None, None, 1e-3])
            request = engine.submit(
                prompt, params, rng.choice(policies), priority=rng.choice([0, 0, 1]), timeout=late
            )
            asked[request] = prompt
            known.add(request)
        if asked and rng.random() < 0.05:
            engine.abort(rng.choice(list(asked)))
        if rng.random() < 0.05:
            engine.scheduler.preempt(rng.choice(list(asked)))
        for done in engine.step():
            prompt = asked.pop(done.request_id)
            ended[done.finish_reason] = ended.get(done.finish_reason, 0) + 1
            if done.finish_reason in ("length", "stop") and rng.random() < 0.5:
                checked += other_pieces.check(prompt, done) > 0
    assert ended["length"] > 10 and checked > 5 and "error" not in ended
    assert engine.scheduler.counters()["suspended"] > 0 or seed == 1  # there a forecast prevents it
    assert engine.scheduler.running == 0
    assert not engine._driver.live  # neither requests nor their shadows
    engine.scheduler.check_integrity()
    assert engine.scheduler.pool.live(0) == engine.scheduler.pool.live(1) == 0


def test_unusable_logits_of_the_large_model_end_the_request(other_pieces: OtherPieces, tmp_path):
    shutil.copytree(other_pieces.folders[1], tmp_path / "large")
    path = tmp_path / "large" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, path, {"format": "pt"})
    config = EngineConfig(delimiters=DELIMITERS, retokenize=True, check_every=1)
    engine = Engine(
        "custom", small=other_pieces.folders[0], large=tmp_path / "large", config=config
    )
    flip = Call(lambda b: "large" if b.step == 1 else "small")
    params = SamplingParams(max_tokens=30, max_step_tokens=3)
    done = engine.generate(["abc", "12"], params, flip)
    assert [c.finish_reason for c in done] == ["error"] * 2
    assert all(c.steps and c.steps[0].model == "small" for c in done)
    (fine,) = engine.generate(["abc"], SamplingParams(max_tokens=30), "small")
    assert fine.finish_reason == "length"


def test_a_policy_that_raises_ends_its_request_alone(other_pieces: OtherPieces):
    engine = other_pieces.engine(check_every=1)

    def fails(boundary: Boundary) -> str:
        if boundary.step == 3:
            raise ValueError("no idea")
        return "large"

    bad = engine.submit("abc", SamplingParams(max_tokens=60), Call(fails, reads=False))
    good = engine.submit("12ab", SamplingParams(max_tokens=60), "large")
    done, failures = {}, 0
    while len(done) < 2:
        try:
            done |= {c.request_id: c for c in engine.step()}
        except ValueError:
            failures += 1
    assert failures == 1 and done[bad].finish_reason == "abort"
    assert done[bad].usage.count("large", "sampled") > 0
    assert done[good].finish_reason == "length" and other_pieces.check("12ab", done[good])


@pytest.mark.parametrize(
    ("changes", "policy", "what"),
    [
        ({"n": 2}, "small", "n above 1"),
        ({"logit_bias": {1: 1.0}}, "small", "logit_bias"),
        ({"stop_token_ids": (1,)}, "small", "stop_token_ids"),
        ({"min_tokens": 2}, "small", "min_tokens"),
        ({"prompt_logprobs": 0}, "small", "prompt_logprobs"),
        ({"audit": "score"}, "small", "an audit"),
        ({}, "judge", "an audit|large model reads"),
        ({}, "small+two-way:0.5", "a policy that needs the large model's signals"),
        ({}, "steer-paper", "a policy that needs the large model's signals"),
    ],
)
def test_requests_that_cannot_cross_are_refused(
    other_pieces: OtherPieces, changes, policy: str, what: str
):
    engine = other_pieces.engine()
    params = replace(SamplingParams(max_tokens=8), **changes)
    with pytest.raises(SteerError, match=f"({what}).*cannot go with retokenize"):
        engine.generate(["abc"], params, policy)
    with pytest.raises(SteerError, match="settle_at_once"):
        engine.submit("abc", policy="small", settle_at_once=False)
    assert engine.generate(["abc"], SamplingParams(max_tokens=4), "large")[0].token_ids


def test_settings_and_prompts_that_cannot_cross_are_refused(other_pieces: OtherPieces):
    for name in ("eager_backlog", "read_along"):
        with pytest.raises(SteerError, match=f"{name} cannot go with retokenize"):
            EngineConfig(retokenize=True, **{name: 8})
    with pytest.raises(SteerError, match="dummy"):
        EngineConfig(retokenize=True, load_format="dummy")
    engine = other_pieces.engine()
    with pytest.raises(SteerError, match="must be text or a Prompt"):
        engine.generate([[1, 2, 3]], policy="small")
    with pytest.raises(SteerError, match="token id 99 is not in"):
        engine.generate([Prompt((1,), (99,))], policy="small")
    with pytest.raises(SteerError, match="empty"):
        engine.generate([Prompt((), (1,))], policy="small")
    with pytest.raises(SteerError, match="must be text or token ids"):
        Engine("tiny").generate([Prompt((1,), (1,))], policy="small")


def test_chats_are_written_by_each_models_own_template(tmp_path: Path, other_pieces: OtherPieces):
    for role, source in zip(("small", "large"), other_pieces.folders, strict=True):
        shutil.copytree(source, tmp_path / role)
        mark = {"small": "1", "large": "22"}[role]
        template = "{% for m in messages %}" + mark + "{{ m.content }}{% endfor %}"
        (tmp_path / role / "chat_template.jinja").write_text(template)
    config = EngineConfig(retokenize=True)
    engine = Engine("custom", small=tmp_path / "small", large=tmp_path / "large", config=config)
    prompt = engine.chat([{"role": "user", "content": "abc"}])
    assert isinstance(prompt, Prompt)
    assert engine.tokenizer.text_of(prompt.small) == "1abc"
    assert other_pieces.tokenizers[1].text_of(prompt.large) == "22abc"
    assert engine.generate([prompt], SamplingParams(max_tokens=8), "large")[0].usage.crossings


def test_bytes_that_no_token_has_do_not_cross(other_pieces: OtherPieces):
    small, large = other_pieces.tokenizers
    assert small.write("aé".encode()) is None and large.write(b"A") is None
    assert large.write(b"") == []
    # Where the longest piece first leads nowhere.
    assert large.bytes_of(large.write(b"abc") or ()) == b"abc"
