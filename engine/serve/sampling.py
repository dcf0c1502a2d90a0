"""From a request's fields to sampling parameters, with OpenAI's defaults."""

from __future__ import annotations

from typing import Any

from engine.params import SamplingParams
from engine.serve.errors import ApiError
from engine.serve.fields import ChatRequest, CommonFields, CompletionRequest

_SAME = (
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "stop",
    "ignore_eos",
    "min_tokens",
    "n",
)
_COMPLETION_TOKENS = 16
_MOST_DIGITS = 10  # of a token id


def sampling_params(
    asked: ChatRequest | CompletionRequest, defaults: SamplingParams, rest: int
) -> SamplingParams:
    """The parameters of a request: what it gives, else what the checkpoint recommends, else
    OpenAI's.

    Args:
        asked: the request.
        defaults: the checkpoint's; a value that differs from ``SamplingParams()`` is its own.
        rest: tokens of the context after the prompt, for a chat without a limit.

    Raises:
        SteerError: on a value out of range.
        ApiError: on biases that are not for token ids.
    """
    values = {"temperature": 1.0} | _own(defaults)
    recommended = values.pop("max_tokens", None)
    values |= {name: value for name in _SAME if (value := getattr(asked, name)) is not None}
    if asked.temperature is not None:
        values["temperature"] = asked.temperature
    if asked.top_k is not None:
        values["top_k"] = max(0, asked.top_k)
    if asked.stop_token_ids:
        values["stop_token_ids"] = tuple(asked.stop_token_ids)
    if asked.seed is not None:
        values["seed"] = asked.seed % 2**64
    if asked.logit_bias:
        values["logit_bias"] = _biases(asked.logit_bias)
    if asked.include_stop_str_in_output:
        values["include_stop"] = True
    if asked.routing is not None and asked.routing.max_large_share is not None:
        values["max_large_share"] = asked.routing.max_large_share
    values["logprobs"] = asked.top
    if (scored := scored_top(asked)) is not None:
        values["prompt_logprobs"] = scored
    values["max_tokens"] = _most_tokens(asked, recommended, rest)
    return SamplingParams(**values)


def scored_top(asked: ChatRequest | CompletionRequest) -> int | None:
    """Likeliest tokens to return at each token of the prompt; None if it is not to be scored."""
    if asked.prompt_logprobs is not None:
        return asked.prompt_logprobs
    echoed = isinstance(asked, CompletionRequest) and asked.echo
    return asked.top if echoed else None


def drops_text(asked: CommonFields) -> bool:
    """Whether the one token that is generated is not wanted: ``max_tokens`` 0 with ``echo``."""
    return isinstance(asked, CompletionRequest) and bool(asked.echo) and asked.max_tokens == 0


def _own(defaults: SamplingParams) -> dict[str, Any]:
    """What a checkpoint really sets."""
    plain = SamplingParams()
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens")
    values = {name: getattr(defaults, name) for name in names}
    return {name: value for name, value in values.items() if value != getattr(plain, name)}


def _most_tokens(asked: ChatRequest | CompletionRequest, recommended: int | None, rest: int) -> int:
    wanted = asked.most_tokens
    if wanted is not None:
        return 1 if drops_text(asked) else wanted
    if isinstance(asked, CompletionRequest):
        return _COMPLETION_TOKENS
    return max(1, min(rest, recommended or rest))


def _biases(given: dict[str, float]) -> dict[int, float]:
    for token in given:
        if not (token.isascii() and token.isdecimal() and len(token) <= _MOST_DIGITS):
            raise ApiError(
                400,
                'logit_bias maps token ids, as in {"42": -100}, to numbers in [-100, 100]',
                param="logit_bias",
            )
    return {int(token): bias for token, bias in given.items()}
