"""A real checkpoint, SmolLM2-135M-Instruct: it says and writes what transformers says and writes.

A few prompts run with all tests, the rest with ``make smollm2``. The same model less most of its
layers is the small one of a pair.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench import smollm2
from engine import Engine, EngineConfig, SamplingParams
from engine.routing.policies import Call

from .conftest import TIE, Ties
from .hard_text import HARD
from .test_parity import said

pytestmark = pytest.mark.skipif(smollm2.missing() is not None, reason=str(smollm2.missing()))

LAYERS = 4  # of the small model
QUESTIONS = (
    "What is the capital of France?",
    "List three uses of a paper clip, one a paragraph.",
    "Write a Python function that reverses a string.",
    "Explain in two short paragraphs why the sky is blue.",
    "Translate 'good morning' into Spanish, German and Italian.",
    "What is 17 times 23? Think step by step.",
    "Give me a recipe for pancakes with exact amounts.",
    "Who wrote Hamlet, and when?",
    "Summarise the water cycle.",
    "Write a haiku about autumn.",
    "What does HTTP status 404 mean?",
    "Name the planets in order from the sun.",
    "How do I undo the last commit in git?",
    "Describe a cat to someone who has never seen one.",
    "What is the difference between a list and a tuple in Python?",
    "Continue the sequence: 1, 1, 2, 3, 5, 8,",
    "Schreibe einen Satz über Berlin.",
    "Write a JSON object with the fields name and age.",
    "Why do leaves change colour?",
    "Tell me a very short story about a robot.",
)


@lru_cache
def oracle(dtype: torch.dtype = torch.float32):
    return AutoModelForCausalLM.from_pretrained(smollm2.folder(), dtype=dtype).eval()


@torch.no_grad()
def logits(tokens, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[len(tokens), vocabulary] fp32: what transformers says about every prefix."""
    return oracle(dtype)(torch.tensor([list(tokens)])).logits[0].float()


@lru_cache
def engine(dtype: str = "float32") -> Engine:
    config = EngineConfig(arena_tokens=4096, max_tick_tokens=512, max_sequences=32)
    small, large = smollm2.truncated(LAYERS), smollm2.folder()
    return Engine("custom", small=small, large=large, dtype=dtype, config=config)


def chats(count: int) -> list[list[int]]:
    tokenizer = engine().tokenizer
    return [tokenizer.chat([{"role": "user", "content": q}]) for q in QUESTIONS[:count]]


def check_logits(texts: tuple[str, ...]) -> None:
    """Within 1e-4 of transformers, or of fp64.

    A few texts (one word repeated, control characters) are so ill-conditioned that transformers'
    own fp32 is farther than that from fp64: there ours may be of the same order.
    """
    ids = [engine().tokenizer.encode(text) for text in texts if text]
    for text, ours in zip(ids, said(engine(), "large", ids), strict=True):
        theirs = logits(text)
        if float((ours - theirs).abs().max()) > 1e-4:
            exact = logits(text, torch.float64)
            mine, other = (float((x - exact).abs().max()) for x in (ours, theirs))
            assert mine < max(1e-4, 3 * other), f"{mine} from fp64, transformers {other}"


def check_greedy(count: int, tokens: int) -> Ties:
    """Each token is the likeliest of its prefix, or within the bound of it; ties are counted."""
    ties = Ties()
    params = SamplingParams(max_tokens=tokens)
    for done in engine().generate(chats(count), params, "large"):
        prompt = len(done.prompt_token_ids)
        says = logits([*done.prompt_token_ids, *done.token_ids])
        for place, token in enumerate(done.token_ids, prompt - 1):
            ties.compared += 1
            lead = float(says[place].max() - says[place, token])
            assert lead < TIE, f"{done.text!r}: token {place + 1}: the oracle's own leads by {lead}"
            ties.count += int(says[place].argmax()) != token
        assert done.finish_reason in ("stop", "length")
    return ties


def test_it_answers():
    (prompt,) = chats(1)
    (done,) = engine().generate([prompt], SamplingParams(max_tokens=16), "large")
    assert done.text == "The capital of France is Paris." and done.finish_reason == "stop"


def test_logits_equal_transformers():
    check_logits((HARD[5], HARD[12]))


def test_greedy_text_equals_transformers():
    check_greedy(2, 12)


@pytest.mark.slow
def test_all_logits_equal_transformers():
    check_logits(HARD)


@pytest.mark.slow
def test_64_greedy_tokens_on_20_prompts():
    ties = check_greedy(len(QUESTIONS), 64)
    assert ties.compared > 900 and ties.count <= 2


@pytest.mark.slow
def test_bf16_agrees_with_transformers():
    """Teacher-forced over its own answers: the likeliest token is the same in 99 of 100 places,
    less ties; with them it is held to 97 only.

    That is a weaker claim than 99 of all places. Ties are places where the two differ and the fp32
    oracle's lead is below one bf16 step of its logit, so that rounding decides.
    """
    params = SamplingParams(max_tokens=64)
    same = places = ties = 0
    for done in engine("bfloat16").generate(chats(len(QUESTIONS)), params, "large"):
        text, first = [*done.prompt_token_ids, *done.token_ids], len(done.prompt_token_ids) - 1
        (ours,) = said(engine("bfloat16"), "large", [text])
        agree = (ours.argmax(-1) == logits(text, torch.bfloat16).argmax(-1))[first:-1]
        top = logits(text)[first:-1].topk(2).values
        step = 2.0 ** (top[:, 0].abs().log2().floor() - 7)
        tied = ~agree & (top[:, 0] - top[:, 1] < step)
        same, ties = same + int(agree.sum()), ties + int(tied.sum())
        places += len(done.token_ids)
    print(f"{same} of {places} places agree, {ties} are ties of bf16")
    assert places > 900 and same >= 0.97 * places and same >= 0.99 * (places - ties)


def schedule(position: int) -> str:
    return "large" if zlib.crc32(str(position).encode()) % 2 else "small"


def check_handoffs(count: int, tokens: int, policy: Callable[[int], str]) -> list[str]:
    """Real text under a schedule of handoffs: each token is what its writer says of the prefix."""
    small = AutoModelForCausalLM.from_pretrained(smollm2.truncated(LAYERS), dtype=torch.float32)
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, max_step_tokens=7)
    done = engine().generate(chats(count), params, Call(lambda b: policy(b.position), reads=True))
    models = {"small": small.eval(), "large": oracle()}
    writers = []
    for completion in done:
        text = torch.tensor([[*completion.prompt_token_ids, *completion.token_ids]])
        with torch.no_grad():
            says = {role: model(text).logits[0] for role, model in models.items()}
        for step in completion.steps:
            assert step.model == policy(step.position) and step.signals is not None
            for place, token in enumerate(step.token_ids, step.position - 1):
                row = says[step.model][place]
                assert float(row.max() - row[token]) < TIE
            writers.append(step.model)
    return writers


def test_handoffs_over_real_text():
    writers = check_handoffs(2, 24, schedule)
    assert {*writers} == {"small", "large"}


@pytest.mark.slow
def test_many_handoffs_over_real_text():
    writers = check_handoffs(len(QUESTIONS), 64, schedule)
    assert min(writers.count("small"), writers.count("large")) > 50
