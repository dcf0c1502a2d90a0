"""The small model writes, the large one verifies: which tokens stand, and who wrote what."""

from __future__ import annotations

from dataclasses import replace
from math import exp
from typing import Any

import pytest

from engine import (
    AfterThinking,
    Completion,
    Engine,
    EngineConfig,
    SamplingParams,
    SteerError,
    Verify,
)
from engine._core import LARGE, SMALL
from engine.routing.names import make_policy

from .guessed_requests import DRAWN, GREEDY, LONG, PROMPTS, engine_of, what
from .test_speculate import Unusable, total
from .test_speculate_cases import CASES, answers

# A request's policy, or its audit, that reads with the large model cannot be verified too.
READ_BY_LARGE = ("judge", "judge, drawn", "audit")


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The embedded pair, at its defaults."""
    return engine_of(())


def written(done: Completion) -> Any:
    """The answer, and who wrote which token of it."""
    return what(done), done.large_token_share


def test_the_dial_from_one_model_to_the_other(engine: Engine) -> None:
    """At 1 the text is the large model's, at 0 the small one's; between, the large model writes
    more tokens the higher the mark is."""
    small, large = (engine.generate(PROMPTS, LONG, p) for p in ("small", "large"))
    marks = {m: engine.generate(PROMPTS, LONG, f"verify:{m}") for m in (0, 0.01, 0.3, 0.9, 1)}
    assert [d.token_ids for d in marks[0]] == [d.token_ids for d in small]
    assert [d.token_ids for d in marks[1]] == [d.token_ids for d in large]
    shares = [sum(d.large_token_share for d in done) for done in marks.values()]
    assert shares == sorted(shares)
    assert shares[0] == 0 < shares[1] < shares[3] < shares[4] == len(PROMPTS)


class Oracle:
    """What a verified answer is, one token at a time, by requests to each model alone."""

    def __init__(self, engine: Engine, mark: float, finishes_step: bool) -> None:
        self.engine, self.mark, self.finishes_step = engine, mark, finishes_step

    def next(self, ids: list[int], own: bool) -> tuple[int, bool]:
        """The token after ``ids`` and whether the small model wrote it; ``own``: it may not."""
        one = SamplingParams(max_tokens=1, ignore_eos=True, logprobs=20)
        small, large = (self.engine.generate([ids], one, p)[0] for p in ("small", "large"))
        assert large.logprobs is not None
        believed = dict(large.logprobs[0].top)
        (guess,), (draw,) = small.token_ids, large.token_ids
        stands = exp(believed.get(guess, -99.0) - max(believed.values())) >= self.mark and not own
        return (guess, not own) if stands or guess == draw else (draw, False)

    def answer(self, prompt: str, tokens: int) -> tuple[list[int], list[int]]:
        """The tokens, and the places of those that the large model wrote."""
        ids, first, large = self.engine.tokenizer.encode(prompt), 0, []
        start = len(ids)
        for place in range(tokens):
            own = self.finishes_step and bool(large) and large[-1] >= first
            token, small = self.next(ids, own)
            ids.append(token)
            if not small:
                large.append(place)
            if self.engine.tokenizer.decode(ids[start + first :]).endswith("\n\n"):
                first = place + 1
        return ids[start:], large


@pytest.mark.parametrize("finishes_step", [False, True])
@pytest.mark.parametrize("mark", [0.05, 0.5])
def test_which_tokens_stand(engine: Engine, mark: float, finishes_step: bool) -> None:
    """The rule, token by token, from each model's own answers."""
    params = replace(LONG, max_tokens=40)
    for prompt in PROMPTS[:2]:
        (done,) = engine.generate([prompt], params, Verify(mark=mark, finishes_step=finishes_step))
        tokens, large = Oracle(engine, mark, finishes_step).answer(prompt, 40)
        assert list(done.token_ids) == tokens
        base = len(done.prompt_token_ids)
        found = [s.position - base + i for s in done.steps for i in s.replaced or ()]
        assert found == large != []


@pytest.mark.parametrize("case", [case for case in CASES if case not in READ_BY_LARGE])
def test_the_number_read_at_a_time_changes_nothing(case: str) -> None:
    """Whatever a request asks for, and however tight the memory is."""
    params, policy, settings = CASES[case]
    made = engine_of(()).policy(policy)
    expected = None
    for tokens in (1, 3, 15):
        done = answers(Verify(made, 0.2, tokens), params, settings)
        found = [written(d) for d in done]
        expected = expected or found
        assert found == expected


@pytest.mark.parametrize("params", [GREEDY, DRAWN, replace(DRAWN, n=3, seed=9)])
def test_the_text_does_not_depend_on_the_others(engine: Engine, params: SamplingParams) -> None:
    """Alone, or beside 40 requests that leave no row for a second guess."""
    full = Engine("tiny", config=EngineConfig(max_sequences=12, max_drawn_rows=12, check_every=1))
    alone = [engine.generate([prompt], params, "verify:0.3:15") for prompt in PROMPTS]
    crowd = [f"{n}+{n * n % 97}*3?\n\n" for n in range(40)]
    done = full.generate(PROMPTS + crowd, params, ["verify:0.3:15"] * 20 + ["steer"] * 24)
    count = params.n * len(PROMPTS)
    assert [written(d) for d in done[:count]] == [written(d) for some in alone for d in some]


def test_after_kv_was_lost(engine: Engine) -> None:
    """In the middle of a round, too."""
    (expected,) = engine.generate(PROMPTS[:1], LONG, "verify:0.3:5")
    for period in (3, 5, 11):
        request = engine.submit(PROMPTS[0], LONG, "verify:0.3:5")
        ended: list[Completion] = []
        tick = 0
        while not ended:
            ended = engine.step()
            tick += 1
            if not ended and tick % period == 1:
                engine.scheduler.preempt(request)
        assert written(ended[0]) == written(expected)
        assert ended[0].usage.recomputed_share > 0


def test_who_wrote_what(engine: Engine) -> None:
    """A step says which of its tokens the large model wrote; steps of the small model alone and
    answers of one model say so as well."""
    policy = "threshold:max_prob:0.97+verify:0.2"
    done = engine.generate(PROMPTS, LONG, policy)
    steps = [step for d in done for step in d.steps]
    assert {s.model for s in steps} == {"small", "large"}
    for step in steps:
        assert (step.replaced is None) == (step.model == "small")
        assert step.large_tokens == len(step.replaced or ())
        assert all(0 <= i < len(step.token_ids) for i in step.replaced or ())
    for d in done:
        counts = d.usage.speculated
        assert counts.tokens - counts.accepted == sum(s.large_tokens for s in d.steps)
    (small,), (large,) = (engine.generate(PROMPTS[:1], GREEDY, p) for p in ("small", "large"))
    assert (small.large_token_share, large.large_token_share) == (0, 1)
    assert all(step.replaced is None for step in (*small.steps, *large.steps))


def test_it_costs_rows_of_both(engine: Engine) -> None:
    """Each token is a row of the large model; rows after one that did not stand are discarded."""
    for d in engine.generate(PROMPTS, LONG, "verify:0.3:4"):
        counts, usage = d.usage.speculated, d.usage
        assert usage.count("large", "sampled") == counts.tokens == len(d.token_ids)
        assert usage.count("small", "drafted") == counts.accepted
        guesses = usage.count("small", "drafted") + usage.count("small", "rejected")
        verified = usage.count("large", "sampled") + usage.count("large", "discarded")
        assert verified <= guesses and counts.rounds == counts.passes < counts.tokens


def test_a_budget_counts_the_large_models_tokens_only(engine: Engine) -> None:
    """Not those that it let stand."""
    params = replace(LONG, max_large_share=0.5)
    (free,) = engine.generate(PROMPTS[:1], params, "verify:0.02")
    assert 0 < free.large_token_share < 0.5
    assert not any("budget" in step.reason for step in free.steps)
    (capped,) = engine.generate(PROMPTS[:1], replace(LONG, max_large_share=0.01), "verify:0.9")
    assert any("budget" in step.reason for step in capped.steps)


def test_what_streams_is_the_answer(engine: Engine) -> None:
    (done,) = engine.generate(PROMPTS[:1], LONG, "verify:0.3")
    events = list(engine.stream(PROMPTS[0], LONG, "verify:0.3"))
    assert "".join(event.text for event in events) == done.text


@pytest.mark.parametrize("model", [SMALL, LARGE])
def test_unusable_logits_end_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, model: int
) -> None:
    """Of either model: both write. What stood before is kept, and others go on."""
    (plain,) = engine.generate(PROMPTS[:1], LONG, "verify:0.3")
    with monkeypatch.context() as patch:
        Unusable(patch, engine, model, 1)
        (done,) = engine.generate(PROMPTS[:1], LONG, "verify:0.3")
    assert done.finish_reason == "error"
    assert plain.token_ids[: len(done.token_ids)] == done.token_ids
    engine.scheduler.check_integrity()
    assert engine.generate(PROMPTS[:1], LONG, "verify:0.3")[0].token_ids == plain.token_ids


@pytest.mark.parametrize("ticks", range(1, 9))
def test_an_abort_leaves_nothing(engine: Engine, ticks: int) -> None:
    requests = [engine.submit(p, LONG, "verify:0.3:3") for p in PROMPTS]
    for _ in range(ticks):
        engine.step()
    for request in requests:
        engine.abort(request)
    ended = [done for _ in range(50) for done in engine.step()]
    assert [done.finish_reason for done in ended] == ["abort"] * len(requests)
    engine.scheduler.check_integrity()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("verify:x", "with a number MARK"),
        ("verify:1.5", "mark of a verification must be in [0, 1], got 1.5"),
        ("verify:nan", "mark of a verification must be in [0, 1], got nan"),
        ("verify:0.3:0", "1 token or more from the source small; got 0"),
        ("verify:0.3:16", "verify reads a whole number of tokens at a time, from 1 to 15; got 16"),
        ("small+verify", "nothing is verified where small writes all"),
        ("verify:0.3:4:word", "expected verify[:MARK[:K[:step]]]"),
        ("verify:0.3:x", "whole number K, got 'x'"),
        ("large+verify+speculate", "says twice"),
        ("speculate+verify", "twice"),
    ],
)
def test_bad_names(name: str, expected: str) -> None:
    with pytest.raises(SteerError) as error:
        make_policy(name)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_names() -> None:
    assert make_policy("verify:0.5:4:step") == Verify(mark=0.5, tokens=4, finishes_step=True)
    assert make_policy("random:0.5+verify").name == "random+verify"
    assert make_policy("verify").name == "verify"


@pytest.mark.parametrize("policy", ["judge:-5+verify", "audit:-5+verify"])
def test_what_the_large_model_reads_it_cannot_verify(engine: Engine, policy: str) -> None:
    with pytest.raises(SteerError, match="use judge, audit or verify alone"):
        engine.generate(PROMPTS[:1], GREEDY, policy)


def test_all_counts_add_up(engine: Engine) -> None:
    """Of many requests at once."""
    done = engine.generate(PROMPTS * 4, LONG, "verify:0.3:6")
    assert total(done).speculated.tokens == sum(len(d.token_ids) for d in done)


def test_both_parts_of_an_answer_are_verified_alike() -> None:
    """A request is verified as a whole: nothing is verified by another part's mark."""
    verify, other = Verify(mark=0.3), Verify(mark=0.1)
    for thinking, answer in ((verify, other), (verify, "large"), ("large", verify)):
        parts = [make_policy("large") if isinstance(p, str) else p for p in (thinking, answer)]
        with pytest.raises(SteerError, match="both policies must be verified"):
            AfterThinking(*parts)
    for thinking, answer in ((verify, verify), (verify, make_policy("small"))):
        assert AfterThinking(thinking, answer).speculation == verify.speculation
