"""Pairs whose tokenizers differ: text crosses at step boundaries, exactly, and is counted."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from engine import (
    AfterThinking,
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
from engine.cli import main
from engine.config import TINY
from engine.replay.trace import Trace
from engine.routing.policies import Always, Call, Threshold
from engine.text.tokenizer import Tokenizer

from .conftest import DELIMITERS, LARGE, SMALL, TIE, TOKENS, Oracle, random_model, save
from .hard_text import HARD

PROMPTS = ["47+36*37-15?\n\n", "82*71+24*7?\n\n", "11+22-33?\n\n", "5*6*7?\n\n", "13*17*19*23?\n\n"]


def permuted(folder: Path, output: Path) -> Path:
    """The same checkpoint under other ids: its tokenizer, and the rows of embedding and head."""
    shutil.copytree(folder, output)
    path = output / "tokenizer.json"
    raw = json.loads(path.read_text())
    vocabulary = raw["model"]["vocab"]
    ids = sorted({*vocabulary.values(), *(t["id"] for t in raw["added_tokens"])})
    assert ids == list(range(len(ids)))
    new = list(ids)
    random.Random(5).shuffle(new)
    raw["model"]["vocab"] = {token: new[i] for token, i in vocabulary.items()}
    raw["added_tokens"] = sorted(
        ({**t, "id": new[t["id"]]} for t in raw["added_tokens"]), key=lambda t: t["id"]
    )
    path.write_text(json.dumps(raw))
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((output / name).read_text())
        for key in ("eos_token_id", "pad_token_id", "bos_token_id"):
            if settings.get(key) is not None:
                settings[key] = new[settings[key]]
        (output / name).write_text(json.dumps(settings))
    weights = load_file(output / "model.safetensors")
    rows = json.loads((output / "config.json").read_text())["vocab_size"]
    order = torch.arange(rows)
    order[torch.tensor(new)] = torch.tensor(ids)
    for name, tensor in weights.items():
        if tensor.shape[0] == rows and ("embed" in name or "head" in name):
            weights[name] = tensor[order].contiguous()
    save_file(weights, output / "model.safetensors", {"format": "pt"})
    return output


@pytest.fixture(scope="module")
def other_ids(tmp_path_factory) -> Path:
    """The embedded large model under other ids."""
    return permuted(TINY / "large", tmp_path_factory.mktemp("permuted") / "large")


def both(other_ids: Path, **settings) -> tuple[Engine, Engine]:
    """The embedded pair, and the same with other ids for the large model."""
    shared = Engine("tiny", config=EngineConfig(**settings), dtype="float32", device="cpu")
    apart = Engine(
        "custom", small=TINY / "small", large=other_ids, dtype="float32", device="cpu",
        config=EngineConfig(**settings, retokenize=True),
    )  # fmt: skip
    return shared, apart


def test_without_the_flag_the_first_difference_is_named(other_ids: Path):
    with pytest.raises(SteerError, match=r"differ: token .* is id \d+ in the small .*retokenize"):
        Engine("custom", small=TINY / "small", large=other_ids)


def test_where_the_tokens_agree_the_flag_changes_nothing():
    plain, flagged = Engine("tiny"), Engine("tiny", config=EngineConfig(retokenize=True))
    assert plain.fingerprint == flagged.fingerprint
    found = [e.generate(PROMPTS, SamplingParams(max_tokens=48), "random:0.5")
             for e in (plain, flagged)]  # fmt: skip
    assert [c.token_ids for c in found[0]] == [c.token_ids for c in found[1]]
    assert all(c.usage.crossings == 0 for c in found[1])
    assert flagged.generate([flagged.tokenizer.encode(PROMPTS[0])])


POLICIES = {
    "small": Always("small"),
    "large": Always("large"),
    "random": Random(0.5, seed=3),
    "threshold": Threshold("max_prob", 0.9),
    "probe": Threshold("max_prob", 0.9, window=Window("probe", 3, least=True)),
    "step": Threshold("max_prob", 0.97, window=Window("step", least=True)),
    "answer": Threshold("max_prob", 0.9, window=Window("answer", least=True)),
    "after": AfterThinking(Random(0.5), Threshold("max_prob", 0.95)),
}
SETTINGS = {
    "plain": {},
    "stop": {"stop": ("5", "\n\n7")},
    "step": {"max_step_tokens": 2},
    "thinking": {"think_end": "?", "max_think_tokens": 9},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.3},
    "share": {"max_large_share": 0.3},
    "flops": {"max_flops": 3e7},
}  # fmt: skip


def same(shared: Engine, apart: Engine, params: SamplingParams, policy, prompts=PROMPTS):
    """The text, the steps and the books of both are equal; returns those of the second."""
    expected, found = (e.generate(prompts, params, policy) for e in (shared, apart))
    for one, other in zip(expected, found, strict=True):
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        assert one.token_ids == other.token_ids
        steps = [[(s.position, s.model, s.text) for s in c.steps] for c in (one, other)]
        assert steps[0] == steps[1]
        assert [s.reason for s in one.steps] == [s.reason for s in other.steps]
        a, b = one.usage, other.usage
        assert np.array_equal(a.rows, b.rows), (a.rows.tolist(), b.rows.tolist())
        assert np.array_equal(a.entries, b.entries)
        assert a.decision_wait == b.decision_wait and b.crossings >= (other.large_step_share > 0)
    return found


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("policy", POLICIES)
def test_other_ids_change_nothing(other_ids: Path, policy: str, settings: str):
    if policy == "after" and settings != "thinking":
        pytest.skip("it needs the text that ends thinking")
    if policy == "answer" and settings == "thinking":
        pytest.skip("a whole answer on trial does not end with thinking")
    shared, apart = both(other_ids, prefix_cache=False, check_every=1)
    params = SamplingParams(max_tokens=40, **SETTINGS[settings])
    found = same(shared, apart, params, POLICIES[policy])
    if policy in ("large", "random") and settings == "plain":
        assert sum(c.usage.crossings for c in found) > len(PROMPTS)


def test_other_ids_change_nothing_for_steer(other_ids: Path, tmp_path: Path):
    shared, apart = both(other_ids, prefix_cache=False, check_every=1)
    assert shared.fingerprint.partition("-")[2] != apart.fingerprint.partition("-")[2]
    policy = shared.policy("steer")
    trace = tmp_path / "trace.jsonl"
    found = same(shared, apart, SamplingParams(max_tokens=64), policy)
    assert any(s.model == "large" for c in found for s in c.steps)
    again = apart.generate(PROMPTS, SamplingParams(max_tokens=64), policy, trace=trace)
    read = Trace.read(trace)
    total = sum((c.usage for c in again), Usage())
    assert sum((r.usage for r in read.requests), Usage()).to_json() == total.to_json()
    assert total.crossings > 0 and total.retokenised.min() > 0


@pytest.mark.parametrize("policy", ["small", "large", "random", "threshold", "probe"])
def test_a_loop_ends_where_it_does_with_shared_tokens(ring, tmp_path: Path, policy: str):
    small, large = ring.folders
    other = permuted(large, tmp_path / "large")
    engines = [
        Engine("custom", small=small, large=folder, device="cpu", config=EngineConfig(
            prefix_cache=False, check_every=1, retokenize=folder == other))
        for folder in (large, other)
    ]  # fmt: skip
    params = SamplingParams(max_tokens=100, max_repeats=9)
    found = same(*engines, params, POLICIES[policy], ["a", "b", "ca"])
    assert all(c.finish_reason == "repetition" for c in found)
    found = same(*engines, replace(params, max_repeats=0), POLICIES[policy], ["a", "b", "ca"])
    assert all(c.finish_reason == "length" for c in found)


@pytest.mark.parametrize("ahead", ["off", "both"])
def test_with_a_prefix_cache_and_planned_ahead(other_ids: Path, ahead: str):
    shared, apart = both(other_ids, block_tokens=4, plan_ahead=ahead, check_every=1, graphs="on")
    params = SamplingParams(max_tokens=40)
    for policy in (POLICIES["random"], POLICIES["threshold"], POLICIES["large"]):
        expected, found = (e.generate(PROMPTS, params, policy) for e in (shared, apart))
        assert [c.text for c in found] == [c.text for c in expected]


def test_a_stream_joins_to_the_text(other_ids: Path):
    _, apart = both(other_ids)
    params = SamplingParams(max_tokens=40)
    events = list(apart.stream(PROMPTS[0], params, POLICIES["random"]))
    done = events[-1].completion
    assert done is not None and "".join(e.text for e in events) == done.text
    assert [e.model for e in events if e.kind == "step"] == [s.model for s in done.steps]


def test_log_probabilities_are_those_of_tokens_that_a_model_drew_here(other_ids: Path):
    shared, apart = both(other_ids)
    params = SamplingParams(max_tokens=40, logprobs=2)
    expected, found = (e.generate(PROMPTS, params, POLICIES["random"]) for e in (shared, apart))
    for one, other in zip(expected, found, strict=True):
        place = 0
        for step in other.steps:
            span = slice(place, place := place + len(step.token_ids))
            mine = [t.logprob for t in other.logprobs[span]]
            if step.model == "large":
                assert mine == [None] * len(mine)
            else:
                assert mine == pytest.approx([t.logprob for t in one.logprobs[span]], abs=1e-4)


def pieces_tokenizer() -> FastTokenizer:
    """The characters of ``TOKENS`` and all pairs of a to d, in another order."""
    pairs = ["".join(p) for p in permutations("abcd", 2)]
    tokens = [*pairs, *reversed(TOKENS)]
    tokenizer = FastTokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, "a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n\n|\n|" + "|".join(pairs) + "|."),
                                                   "isolated")  # fmt: skip
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


class OtherPieces:
    """A pair whose large model writes in other pieces, and both models' oracles."""

    def __init__(self, folder: Path) -> None:
        small = random_model(3, **SMALL)
        shape = {**LARGE, "vocab": 56}
        large = random_model(1003, **shape)
        self.folders = save(small, folder / "small"), save(large, folder / "large")
        pieces_tokenizer().save(str(folder / "large" / "tokenizer.json"))
        self.small, self.large = Oracle(small), Oracle(large)
        self.tokenizers = Tokenizer(self.folders[0]), Tokenizer(self.folders[1])

    def engine(self, **config) -> Engine:
        small, large = self.folders
        settings = EngineConfig(delimiters=DELIMITERS, retokenize=True, **config)
        return Engine("custom", small=small, large=large, config=settings, device="cpu")

    def likeliest(self, oracle: Oracle, model: int, tokens: list[int]) -> tuple[int, float]:
        row = oracle.logits(tokens)[-1, : self.tokenizers[model].size]
        top = row.topk(2)
        return int(top.indices[0]), float(top.values[0] - top.values[1])

    def check(self, prompt: str, done) -> int:
        """Each step is what its model says of its own ids; returns tokens of large steps."""
        mine, theirs = (t.encode(prompt) for t in self.tokenizers)
        crossed, written, large_tokens = b"", b"", 0
        for step in done.steps:
            data = self.tokenizers[0].bytes_of(step.token_ids)
            last = step is done.steps[-1]
            if step.model == "small":
                for place, token in enumerate(step.token_ids):
                    said, lead = self.likeliest(self.small, 0, [*mine, *step.token_ids[:place]])
                    assert said == token or lead < TIE
            else:
                ids = self.tokenizers[1].write(written[len(crossed):])  # fmt: skip
                assert (
                    ids is not None and self.tokenizers[1].bytes_of(ids) == written[len(crossed) :]
                )
                theirs += ids
                own = b""
                while len(own) < len(data):
                    token, _ = self.likeliest(self.large, 1, theirs)
                    theirs.append(token)
                    own += self.tokenizers[1].bytes[token]
                    large_tokens += 1
                assert own == data or (last and own.startswith(data)), (own, data)
                crossed = written + own
            mine += step.token_ids
            written += data
        return large_tokens


@pytest.fixture(scope="module")
def other_pieces(tmp_path_factory) -> OtherPieces:
    return OtherPieces(tmp_path_factory.mktemp("pieces"))


def letters(rng: random.Random, longest: int = 30) -> str:
    return "".join(rng.choice("abcdefgh123") for _ in range(rng.randint(1, longest)))


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
        assert usage.count("large", "prompt") in (len(large.encode(prompt)) - 1,
                                                  len(large.encode(prompt)))  # fmt: skip
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


@pytest.mark.parametrize("seed", range(3))
def test_soak_in_a_tight_arena(other_pieces: OtherPieces, seed: int):
    """Random requests, policies, aborts and deadlines; each that lives is right."""
    rng = random.Random(seed)
    engine = other_pieces.engine(
        block_tokens=4, arena_tokens=rng.choice([112, 160]), max_context=96, max_sequences=6,
        eager_admission=seed != 1,
        max_tick_tokens=24, check_every=1, prefix_cache=bool(seed % 2),
        plan_ahead=rng.choice(["off", "both"]), overlap=bool(seed != 2),
        lane_policy=rng.choice(["latency", "throughput", "weighted", "auto"]),
    )  # fmt: skip
    asked: dict[int, str] = {}
    ended: dict[str, int] = {}
    checked, known = 0, set()
    policies = [
        Call(lambda b: rng.choice(["small", "large"])), Always("large"), Random(0.6, seed=seed),
        Threshold("max_prob", 0.5, window=Window("probe", 3)), Call(
            lambda b: rng.choice(["small", "large"]), reads=False),
    ]  # fmt: skip
    while asked or len(known) < 60:
        while len(known) < 60 and len(asked) < 12:
            prompt = letters(rng, 40)
            params = SamplingParams(
                max_tokens=rng.randint(3, 40), max_step_tokens=rng.choice([0, 0, 3]),
                stop=rng.choice([(), (), ("a1", "bb")]),
            )  # fmt: skip
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
    assert not any(engine.is_live(i) or engine.is_live(-i) for i in known)  # -i: what i's shadow is
    engine.scheduler.check_integrity()
    assert engine.scheduler.pool.live(0) == engine.scheduler.pool.live(1) == 0


def test_unusable_logits_of_the_large_model_end_the_request(other_pieces: OtherPieces, tmp_path):
    shutil.copytree(other_pieces.folders[1], tmp_path / "large")
    path = tmp_path / "large" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, path, {"format": "pt"})
    config = EngineConfig(delimiters=DELIMITERS, retokenize=True, check_every=1)
    engine = Engine("custom", small=other_pieces.folders[0], large=tmp_path / "large",
                    config=config)  # fmt: skip
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


@pytest.mark.parametrize(("changes", "policy", "what"), [
    ({"n": 2}, "small", "n above 1"),
    ({"logit_bias": {1: 1.0}}, "small", "logit_bias"),
    ({"stop_token_ids": (1,)}, "small", "stop_token_ids"),
    ({"min_tokens": 2}, "small", "min_tokens"),
    ({"audit": "score"}, "small", "an audit"),
    ({}, "judge", "an audit|large model reads"),
])  # fmt: skip
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


def test_the_command_takes_the_flag(other_ids: Path, capsys):
    command = ["generate", PROMPTS[0], "--pair", "custom", "--small", str(TINY / "small"),
               "--large", str(other_ids), "--policy", "random:0.5"]  # fmt: skip
    assert main(command) == 2
    assert "retokenize" in capsys.readouterr().err
    assert main([*command, "--retokenize"]) == 0
    assert "large" in capsys.readouterr().out


# Tokenizer.write


def trained_byte_level(folder: Path, normalizer=None) -> Tokenizer:
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=380, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([t for t in HARD if t.strip()] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("</think>", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def trained_pieces(folder: Path, dummy: bool) -> Tokenizer:
    corpus = [t.replace("\n", " ").replace("\0", "") for t in HARD if t.strip()] * 3
    (folder / "text").write_text("\n".join(corpus))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), vocab_size=480,
        model_type="bpe", byte_fallback=True, character_coverage=0.98, add_dummy_prefix=dummy,
        normalization_rule_name="identity", remove_extra_whitespaces=dummy, minloglevel=2,
    )  # fmt: skip
    return Tokenizer(folder)


@pytest.mark.parametrize("kind", ["bytes", "nfc", "pieces", "tidied pieces"])
def test_every_byte_crosses(kind: str, tmp_path: Path):
    if kind in ("bytes", "nfc"):
        tokenizer = trained_byte_level(tmp_path, normalizers.NFC() if kind == "nfc" else None)
    else:
        tokenizer = trained_pieces(tmp_path, dummy=kind == "tidied pieces")
    rng = random.Random(1)
    texts = [t.encode() for t in HARD]
    texts += [bytes(rng.randrange(256) for _ in range(rng.randint(1, 40))) for _ in range(50)]
    texts += [data[rng.randrange(len(data)) :] for data in texts if data]
    texts += [data[: rng.randrange(len(data))] for data in texts if data]
    for data in texts:
        ids = tokenizer.write(data)
        assert ids is not None and tokenizer.bytes_of(ids) == data, data
    for text in ("so it goes", "</think>"):  # plain text in as few tokens as the tokenizer has
        written, encoded = tokenizer.write(text.encode()), tokenizer.encode(text)
        assert written is not None and len(written) <= len(encoded) + 1
    special = tokenizer.write(b"<|im_start|>")
    assert special is not None and len(special) > 1


def test_bytes_that_no_token_has_do_not_cross(other_pieces: OtherPieces):
    small, large = other_pieces.tokenizers
    assert small.write("aé".encode()) is None and large.write(b"A") is None
    assert large.write(b"") == []
    # Where the longest piece first leads nowhere.
    assert large.bytes_of(large.write(b"abc") or ()) == b"abc"


def test_a_calibration_is_that_of_the_shared_pair(other_ids: Path, tmp_path: Path, capsys):
    """tau for an accuracy, both models at work; agreement asks for what cannot cross."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": p}) for p in PROMPTS * 8))
    apart = ["--pair=custom", f"--small={TINY / 'small'}", f"--large={other_ids}", "--retokenize"]
    found = []
    for name, pair in (("shared", []), ("apart", apart)):
        output = tmp_path / f"{name}.json"
        flags = ["--max-tokens=80", "--target=share:0.25", "--no-plots", f"--output={output}"]
        assert main(["calibrate", str(path), *pair, *flags]) == 0
        found.append(json.loads(output.read_text()))
    assert found[0].pop("pair") != found[1].pop("pair")
    for raw in found:
        del raw["provenance"]["pair"], raw["provenance"]["date"]
    assert found[0] == found[1] and found[0]["provenance"]["aim_reached"]
    assert main(["generate", PROMPTS[0], *apart, f"--calibration={output}"]) == 0
    capsys.readouterr()
    agreement = ["--target=agreement:0.9", f"--output={tmp_path / 'never.json'}"]
    assert main(["calibrate", str(path), *apart, *agreement]) == 2
    assert "cannot go with --retokenize" in capsys.readouterr().err
    assert not (tmp_path / "never.json").exists()
