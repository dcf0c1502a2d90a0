"""The files of `make real-pair`, where they are: greedy texts are transformers'. Minutes, slow.

In fp32 on both sides. Where llama.cpp's Python package is installed, its tokens of the same file
are compared too; it multiplies with rounded activations, so its texts part sooner or later.
"""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig

from bench.real_pair import problems
from bench.real_pair.command import FOLDER
from bench.real_pair.sources import pair_sources
from engine import Completion, Engine, EngineConfig, SamplingParams
from engine.conversation import Conversation

from .conftest import ROLES, TIE, Ties

PATHS = [Path(__file__).parents[2] / FOLDER / source.file for source in pair_sources()]
PROMPTS, TOKENS = 10, 48

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(Path.is_file, PATHS)), reason="files of `make real-pair`"),
]


def answers(role: str) -> list[Completion]:
    """Greedy answers to word problems; the engine is gone when its oracle comes."""
    config = EngineConfig(arena_tokens=4096, max_context=1024, max_sequences=PROMPTS)
    small, large = PATHS
    engine = Engine("custom", small=small, large=large, dtype="float32", config=config)
    (drawn, _) = problems.draw(PROMPTS, 0)
    chat = Conversation(chat=True, instruction=problems.INSTRUCTION)
    prompts = chat.prompts(engine, [problem.prompt for problem in drawn])
    return engine.generate(prompts, SamplingParams(max_tokens=TOKENS), role)


@torch.no_grad()
@pytest.mark.parametrize("role", ROLES)
def test_greedy_texts_equal_transformers(role: str):
    """Each token is the likeliest of its prefix, or within the bound of it; ties are counted."""
    found, path = answers(role), PATHS[ROLES.index(role)]
    gc.collect()
    oracle = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    ).eval()
    ties = Ties()
    for done in found:
        tokens = [*done.prompt_token_ids, *done.token_ids]
        logits = oracle(torch.tensor([tokens])).logits[0, len(done.prompt_token_ids) - 1 : -1]
        for said, token in zip(logits, done.token_ids, strict=True):
            ties.compared += 1
            lead = float(said.max() - said[token])
            assert lead < TIE, f"{done.text!r}: the oracle's own leads by {lead}"
            ties.count += int(said.argmax()) != token
    print(f"{role}: {ties.compared} tokens of {len(found)} prompts, {ties.count} ties")
    assert ties.compared >= PROMPTS * TOKENS // 2


def test_tokens_of_llama_cpp():
    """Of 10 chats: the same ids, and in 95 of 100 places the same next token, teacher-forced."""
    llama_cpp = pytest.importorskip("llama_cpp")
    found = answers("small")
    other = llama_cpp.Llama(
        str(PATHS[0]), n_ctx=1024, n_threads=2, n_batch=1024, logits_all=True, verbose=False
    )
    same = places = 0
    for done in found:
        text = done.prompt_token_ids
        tokens = [*text, *done.token_ids]
        other.reset()
        other.eval(tokens)
        says = other.scores[len(text) - 1 : len(tokens) - 1].argmax(-1)
        same += int((says == torch.tensor(done.token_ids).numpy()).sum())
        places += len(done.token_ids)
    print(f"{same} of {places} places agree with llama.cpp")
    assert same >= 0.95 * places
