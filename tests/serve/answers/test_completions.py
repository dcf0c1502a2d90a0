"""POST /v1/completions: batches, echo, log-probabilities, streams."""

from __future__ import annotations

import math

import pytest

from engine import SamplingParams

from .running import Running

PATH = "/v1/completions"
PROMPT = "47+36*7-15?\n\n"
GREEDY = {"temperature": 0, "max_tokens": 60}


def expected(server: Running, prompts: list, policy: str = "steer") -> list[str]:
    """The texts of the engine itself; it has to be idle."""
    assert server.idle()
    params = SamplingParams(max_tokens=60)
    with server.engine._driver.one_thread(wait=True):
        return [c.text for c in server.engine.generate(prompts, params, policy)]


def test_an_answer_is_the_engines(tiny: Running):
    answer = tiny.post(PATH, prompt=PROMPT, **GREEDY)
    (choice,) = answer["choices"]
    assert answer["object"] == "text_completion" and answer["model"] == "tiny"
    assert [choice["text"]] == expected(tiny, [PROMPT])
    assert choice["finish_reason"] == "stop" and choice["logprobs"] is None
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(tiny.engine.tokenizer.encode(PROMPT))
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0
    assert usage["steer"]["tokens"] == answer["steer"]["tokens"]


def test_by_default_16_tokens_and_chance(tiny: Running):
    drawn, greedy = (
        tiny.post(PATH, prompt="qzj@", ignore_eos=True, n=8, temperature=temperature)
        for temperature in (None, 0)
    )
    assert drawn["usage"]["completion_tokens"] == 8 * 16
    assert len({choice["text"] for choice in drawn["choices"]}) > 1
    assert len({choice["text"] for choice in greedy["choices"]}) == 1


@pytest.mark.parametrize("seed", [7, -(2**63), 2**63 - 1])
def test_a_seed_fixes_the_text(tiny: Running, seed: int):
    asked = {"prompt": PROMPT, "seed": seed, "temperature": 2.0, "n": 3, "model": "small"}
    first, second = (tiny.post(PATH, **asked) for _ in range(2))
    assert [c["text"] for c in first["choices"]] == [c["text"] for c in second["choices"]]


def test_prompts_of_every_form(tiny: Running):
    encode = tiny.engine.tokenizer.encode
    prompts = [PROMPT, "1+1?\n\n"]
    ids = [encode(prompt) for prompt in prompts]
    texts = expected(tiny, prompts)
    for form, wanted in ((prompts, texts), (ids, texts), (ids[0], texts[:1]), (PROMPT, texts[:1])):
        answer = tiny.post(PATH, prompt=form, **GREEDY)
        assert [c["text"] for c in answer["choices"]] == wanted
        assert [c["index"] for c in answer["choices"]] == list(range(len(wanted)))
        assert answer["usage"]["prompt_tokens"] == sum(map(len, ids[: len(wanted)]))


def test_n_of_several_prompts(tiny: Running):
    prompts = [PROMPT, "1+1?\n\n"]
    answer = tiny.post(PATH, prompt=prompts, n=2, best_of=2, **GREEDY)
    first, second = expected(tiny, prompts)
    assert [c["text"] for c in answer["choices"]] == [first, first, second, second]
    assert [c["index"] for c in answer["steer"]["choices"]] == [0, 1, 2, 3]


def test_streams_of_several_prompts(tiny: Running):
    prompts = [PROMPT, "1+1?\n\n", "9*9?\n\n"]
    options = {"stream_options": {"include_usage": True}}
    *chunks, last = tiny.stream(PATH, prompt=prompts, n=2, **GREEDY, **options)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    for index in range(6):
        own = [choice for choice in choices if choice["index"] == index]
        text = "".join(choice["text"] for choice in own)
        assert text == expected(tiny, prompts)[index // 2]
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + ["stop"]
    whole = tiny.post(PATH, prompt=prompts, n=2, **GREEDY)["usage"]
    assert last["choices"] == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert last["usage"][name] == whole[name]
    assert tiny.idle()


def test_log_probabilities(tiny: Running):
    asked = {"prompt": PROMPT, "logprobs": 2, "model": "small", **GREEDY}
    (choice,) = tiny.post(PATH, **asked)["choices"]
    lists = choice["logprobs"]
    assert {len(each) for each in lists.values()} == {len(lists["tokens"])}
    text = choice["text"]
    for token, at in zip(lists["tokens"], lists["text_offset"], strict=True):
        assert text[at : at + len(token)] == token or at == len(text)
    for token, own, top in zip(
        lists["tokens"], lists["token_logprobs"], lists["top_logprobs"], strict=True
    ):
        assert top[token] == own == max(top.values()) and len(top) == 2
        assert math.isfinite(own) and own <= 0
    streamed = tiny.stream(PATH, **asked)
    joined: dict = {name: [] for name in lists}
    for chunk in streamed:
        for name, each in (chunk["choices"][0]["logprobs"] or {}).items():
            joined[name] += each
    assert joined == lists


def test_echo(tiny: Running):
    ids = tiny.engine.tokenizer.encode(PROMPT)
    for prompt in (PROMPT, ids):
        (choice,) = tiny.post(PATH, prompt=prompt, echo=True, **GREEDY)["choices"]
        assert choice["text"] == PROMPT + expected(tiny, [PROMPT])[0]
        chunks = tiny.stream(PATH, prompt=prompt, echo=True, **GREEDY)
        assert "".join(c["choices"][0]["text"] for c in chunks) == choice["text"]


@pytest.mark.parametrize("model", ["small", "large"])
@pytest.mark.parametrize("most", [0, 1])
def test_a_prompt_is_scored_as_lm_eval_asks(tiny: Running, model: str, most: int):
    encode = tiny.engine.tokenizer.encode
    prompts = [encode(PROMPT), encode("1+1?\n\n2")]
    asked = {"prompt": prompts, "echo": True, "logprobs": 1, "max_tokens": most, "model": model}
    answer = tiny.post(PATH, temperature=0, seed=1234, **asked)
    for ids, choice in zip(prompts, answer["choices"], strict=True):
        lists = choice["logprobs"]
        assert len(lists["tokens"]) == len(ids) + most
        assert lists["token_logprobs"][0] is None and lists["top_logprobs"][0] is None
        for own, top in zip(lists["token_logprobs"][1:], lists["top_logprobs"][1:], strict=True):
            assert own <= max(top.values()) <= 0
        assert choice["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2 * most
    assert tiny.idle()


def test_prompt_logprobs(tiny: Running):
    ids = tiny.engine.tokenizer.encode(PROMPT)
    answer = tiny.post(PATH, prompt=PROMPT, prompt_logprobs=1, model="small", max_tokens=1)
    scored = answer["choices"][0]["prompt_logprobs"]
    assert scored[0] is None and len(scored) == len(ids)
    assert all(str(i) in row for i, row in zip(ids[1:], scored[1:], strict=True))


@pytest.mark.parametrize("more", [{"echo": True, "logprobs": 1}, {"prompt_logprobs": 0}])
def test_a_routed_prompt_is_not_scored(tiny: Running, more: dict):
    error = tiny.refused(PATH, prompt=PROMPT, **more)
    assert error["param"] == "model" and '"small" or "large"' in error["message"]


def test_token_ids_are_returned(tiny: Running):
    asked = {"prompt": PROMPT, "return_token_ids": True, "model": "small", **GREEDY}
    (choice,) = tiny.post(PATH, **asked)["choices"]
    chunks = [chunk["choices"][0] for chunk in tiny.stream(PATH, **asked)]
    assert choice["prompt_token_ids"] == tiny.engine.tokenizer.encode(PROMPT)
    assert [i for c in chunks for i in c.get("token_ids", ())] == choice["token_ids"]
    assert sum("prompt_token_ids" in c for c in chunks) == 1


def test_a_bias_has_text_keys(tiny: Running):
    token = tiny.engine.tokenizer.id_of("q")
    asked = {"prompt": PROMPT, "max_tokens": 4, "logit_bias": {str(token): 100}}
    assert tiny.post(PATH, **asked)["choices"][0]["text"] == "qqqq"


def test_sampling_fields_reach_the_engine(tiny: Running):
    greedy = tiny.post(PATH, prompt=PROMPT, **GREEDY)["choices"][0]["text"]
    for one in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        asked = {"prompt": PROMPT, "max_tokens": 60, "temperature": 1.5, **one}
        assert tiny.post(PATH, **asked)["choices"][0]["text"] == greedy
    for off in (0, -1):
        tiny.post(PATH, prompt=PROMPT, top_k=off)
    (choice,) = tiny.post(PATH, prompt=PROMPT, min_tokens=50, **GREEDY)["choices"]
    assert len(choice["text"]) >= 40


def test_tokenize_and_back(tiny: Running):
    ids = tiny.engine.tokenizer.encode(PROMPT)
    found = tiny.post("/tokenize", prompt=PROMPT)
    assert found == {"count": len(ids), "max_model_len": 256, "tokens": ids}
    assert tiny.post("/detokenize", tokens=ids) == {"prompt": PROMPT}
    assert tiny.refused("/detokenize", tokens=[999])["param"] == "tokens"
    assert tiny.refused("/tokenize", prompt=5)["param"] == "prompt"
