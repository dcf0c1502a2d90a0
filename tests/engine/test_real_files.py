"""The files of `make real-pair`, where they are: greedy texts are transformers'. Minutes, slow.

In fp32 on both sides. Where llama.cpp is installed (xllamacpp, a package of it that need not be
built), its next tokens are compared: it multiplies with rounded activations, so some may differ.
"""

from __future__ import annotations

import gc
import json
import unicodedata
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig

from bench.real_pair import problems
from bench.real_pair.command import FOLDER
from bench.real_pair.sources import pair_sources
from engine import Completion, Engine, EngineConfig, SamplingParams
from engine.conversation import Conversation
from engine.text.tokenizer import Tokenizer

from .conftest import ROLES, TIE, Ties
from .hard_text import HARD

PATHS = [Path(__file__).parents[2] / FOLDER / source.file for source in pair_sources()]
PROMPTS, TOKENS = 10, 48

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(Path.is_file, PATHS)),
        reason="needs the 1.6 GB of files that `make real-pair` fetches",
    ),
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


def normal(text: str) -> bool:
    """Whether both read a text alike by design.

    Qwen's tokenizer composes characters, llama.cpp does not; and llama.cpp takes no control token
    out of a text unless it is asked to.
    """
    return text == unicodedata.normalize("NFC", text) and "<|" not in text


def test_tokens_of_llama_cpp():
    """Of 10 chats: in 95 of 100 places the same likeliest next token, and the same ids of texts."""
    xllamacpp = pytest.importorskip("xllamacpp")  # llama.cpp in a wheel; not a requirement
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel = str(PATHS[0]), 1024, 1
    server = xllamacpp.Server(settings)

    def said(path: str, asked: dict[str, Any]) -> list[int]:
        request = Request(f"{server.listening_address}/{path}", json.dumps(asked).encode())
        with urlopen(request) as answer:
            return json.load(answer)["tokens"]

    for text in filter(normal, HARD):
        assert said("tokenize", {"content": text}) == Tokenizer(PATHS[0]).encode(text), text
    same = places = 0
    for done in answers("small"):
        tokens = [*done.prompt_token_ids, *done.token_ids]
        for place in range(len(done.prompt_token_ids), len(tokens)):
            asked = {"prompt": tokens[:place], "n_predict": 1, "temperature": 0}
            found = said("completion", asked | {"return_tokens": True, "cache_prompt": True})
            same += found == tokens[place : place + 1]
            places += 1
    print(f"{same} of {places} places agree with llama.cpp")
    assert same >= 0.95 * places
