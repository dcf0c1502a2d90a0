"""Counts of tokens, as OpenAI's ``usage``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from typing import Any

from engine.accounting.ledger import Usage
from engine.engine import Engine
from engine.request import Completion


def counts(prompt: int, written: int, cached: int | None = None) -> dict[str, Any]:
    """``usage`` of so many tokens; ``cached``: those of the prompt that were not computed."""
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return usage


def usage_of(
    engine: Engine, prompts: Sequence[int], done: Sequence[Completion], dropped: bool
) -> dict[str, Any]:
    """``usage`` of a finished request.

    Args:
        engine: prices the rows.
        prompts: tokens of each prompt, counted once whatever ``n`` is.
        done: the completions, those of one prompt next to each other.
        dropped: the generated tokens were not asked for.
    """
    each = max(1, len(done) // max(1, len(prompts)))
    groups = [done[i : i + each] for i in range(0, len(done), each)]
    cached = sum(min(one.cached_tokens for one in group) for group in groups)
    written = 0 if dropped else sum(len(one.token_ids) for one in done)
    usage = counts(sum(prompts), written, cached)
    usage["steer"] = {"tokens": tokens_by_author(done), "flops": flops_of(engine, done)}
    return usage


def tokens_by_author(done: Iterable[Completion]) -> dict[str, int]:
    """Generated tokens by the model that wrote them."""
    tokens = Counter(small=0, large=0)
    for completion in done:
        large = sum(step.large_tokens for step in completion.steps)
        tokens += Counter(small=len(completion.token_ids) - large, large=large)
    return {"small": tokens["small"], "large": tokens["large"]}


def flops_of(engine: Engine, done: Sequence[Completion]) -> dict[str, Any]:
    """FLOPs in each accounting, and those of the large model alone on the same tokens."""
    total = reduce(add, (completion.usage for completion in done))
    return {**engine.flops(total), "large_alone": large_alone(engine, done)}


def large_alone(engine: Engine, done: Sequence[Completion]) -> dict[str, int]:
    """FLOPs in each accounting, had the large model written all answers alone."""
    lengths = ((len(each.prompt_token_ids), len(each.token_ids)) for each in done)
    alone = Usage.alone_sum("large", (pair for pair in lengths if pair[1]))
    return engine.flops(alone)
