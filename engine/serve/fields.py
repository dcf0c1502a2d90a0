"""The fields of a request, as they come: types and caps, before any work is done for them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from engine.serve.errors import ApiError
from engine.serve.settings import ServerSettings

_log = logging.getLogger(__name__)
_INT64 = 2**63
_INT32 = 2**31
_MOST_IDS = 1024  # of stop_token_ids

Whole = Annotated[int, Field(ge=-_INT32, lt=_INT32)]
TokenIds = list[Annotated[int, Field(ge=0, lt=_INT32)]]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")


class Routing(_Strict):
    """``routing``: how the models share the answer. A name that is none of these is an error."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")

    policy: Annotated[str, Field(max_length=200)] | None = None
    tau: float | None = None
    window: Annotated[str, Field(max_length=100)] | None = None
    max_large_share: Annotated[float, Field(ge=0, le=1)] | None = None
    speculate: Annotated[int, Field(ge=1, le=64)] | Annotated[str, Field(max_length=50)] | None = (
        None
    )


class StreamOptions(_Strict):
    """``stream_options``: whether and how often a stream tells its usage."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ResponseFormat(_Strict):
    """``response_format``: text only; structured output is not built yet."""

    type: str


class CommonFields(_Strict):
    """Fields of both endpoints. Unknown ones are ignored; null is the same as not given."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=0, lt=_INT32)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=-1, lt=_INT32)] | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=_INT32)] | None = None
    seed: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = None
    logit_bias: dict[str, float] | None = None
    return_token_ids: bool | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    priority: Whole | None = None
    request_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    timeout: Annotated[float, Field(gt=0)] | None = None
    response_format: ResponseFormat | None = None
    routing: Routing | None = None

    @property
    def samples(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def most_tokens(self) -> int | None:
        """The limit that the client set; None without one."""
        return self.max_tokens

    def check(self) -> None:
        """ApiError on fields that do not go together, or that are not built."""
        form = self.response_format
        if form is not None and form.type != "text":
            raise ApiError(
                400,
                'response_format: structured output is not built yet; send {"type": "text"} or '
                "leave it out",
                param="response_format",
            )
        if self.best_of not in (None, self.samples):
            raise ApiError(400, "best_of must be n, or left out", param="best_of")
        if self.stream and self.prompt_logprobs is not None:
            raise ApiError(
                400,
                "prompt_logprobs come with the whole answer: leave stream out",
                param="prompt_logprobs",
            )


class ChatRequest(CommonFields):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=0, lt=_INT32)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )

    @property
    def most_tokens(self) -> int | None:
        """``max_completion_tokens``, or else ``max_tokens``."""
        new = self.max_completion_tokens
        return self.max_tokens if new is None else new

    @property
    def top(self) -> int | None:
        """Likeliest tokens to return with each token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def check(self) -> None:
        """ApiError on fields that do not go together, or that are not built."""
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        if self.chat_template is not None:
            raise ApiError(
                400,
                "chat_template: a request's own template is not run; the checkpoint's is",
                param="chat_template",
            )
        if self.tool_choice not in (None, "none", "auto"):
            raise ApiError(
                400,
                'tool_choice must be "none" or "auto": tool calls are not parsed here, so that '
                "none can be required",
                param="tool_choice",
            )


class CompletionRequest(CommonFields):
    """The body of /v1/completions."""

    prompt: str | list[str] | TokenIds | list[TokenIds]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: Any = None

    @property
    def top(self) -> int | None:
        """Likeliest tokens to return with each token; None for no log-probabilities."""
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or its ids."""
        given: Any = self.prompt
        single = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
        return [given] if single else list(given)

    def check(self) -> None:
        """ApiError on fields that do not go together, or that are not built."""
        super().check()
        if not self.prompts or not all(self.prompts):
            raise ApiError(400, "prompt is empty", param="prompt")
        if self.suffix:
            raise ApiError(400, "suffix: text cannot be inserted before one", param="suffix")
        if self.stream and self.echo and self.logprobs is not None:
            raise ApiError(
                400,
                "echo with logprobs comes with the whole answer: leave stream out",
                param="echo",
            )


class TokenizeRequest(_Strict):
    """The body of /tokenize, for a text; a conversation has the fields of a chat."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class AbortRequest(_Strict):
    """The body of /abort_request; ``request_id`` is read too."""

    rid: Annotated[str, Field(min_length=1)]


class DetokenizeRequest(_Strict):
    """The body of /detokenize."""

    model: str | None = None
    tokens: TokenIds


_Model = TypeVar("_Model", bound=_Strict)


def read_fields(kind: type[_Model], raw: object, settings: ServerSettings) -> _Model:
    """A request's checked fields.

    Args:
        kind: the model of the body.
        raw: the parsed body.
        settings: the caps.

    Raises:
        ApiError: 400 on too much of something, and on fields that do not go together.
        pydantic.ValidationError: on fields of the wrong type.
    """
    if not isinstance(raw, dict):
        raise ApiError(400, "the body must be a JSON object")
    _check_caps(raw, settings)
    asked = kind.model_validate(raw)
    if asked.model_extra:
        names = sorted(name[:64] for name in asked.model_extra)[:50]
        _log.debug("ignored fields: %s", ", ".join(names))
    if isinstance(asked, CommonFields):
        asked.check()
    return asked


def _check_caps(raw: Mapping[str, Any], settings: ServerSettings) -> None:
    """ApiError on a list that is too long, before its entries are looked at."""
    caps = {
        "stop": settings.max_stops,
        "messages": settings.max_messages,
        "tools": settings.max_tools,
        "documents": settings.max_tools,
        "logit_bias": settings.max_logit_bias,
        "stop_token_ids": _MOST_IDS,
    }
    for name, most in caps.items():
        value = raw.get(name)
        if isinstance(value, list | dict) and len(value) > most:
            raise ApiError(
                400, f"{name} has {len(value)} entries; at most {most} are taken", param=name
            )
    prompts = _count_prompts(raw.get("prompt"))
    if prompts > settings.max_prompts:
        raise ApiError(
            400, f"{prompts} prompts; at most {settings.max_prompts} are taken", param="prompt"
        )
    n = raw.get("n")
    if isinstance(n, int) and not isinstance(n, bool):
        if n > settings.max_n:
            raise ApiError(400, f"n must be at most {settings.max_n}", param="n")
        if n * prompts > settings.max_prompts:
            raise ApiError(
                400,
                f"n={n} of {prompts} prompts are {n * prompts} answers; at most "
                f"{settings.max_prompts} are taken",
                param="n",
            )


def _count_prompts(prompt: object) -> int:
    ids = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)
    return len(prompt) if isinstance(prompt, list) and not ids else 1
