"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from engine.request import Completion, Prompt
from engine.serve.answering import AnyPrompt, Job, finish_reason, stop_reason
from engine.serve.chat_chunks import ChatChunks
from engine.serve.documented import ANSWER_OR_STREAM, ERRORS, body_of
from engine.serve.endpoint import Endpoint
from engine.serve.errors import ApiError
from engine.serve.fields import ChatRequest
from engine.serve.logprobs import chat_logprobs, scored_prompt
from engine.serve.reasoning import opens_thinking, split_reasoning
from engine.serve.service import Service

router = APIRouter(responses=ERRORS)
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# What a template is given by name elsewhere, or not at all.
_NO_VARIABLES = (
    "messages",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
)


@router.post("/v1/chat/completions", responses=ANSWER_OR_STREAM, openapi_extra=body_of(ChatRequest))
async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    return await ENDPOINT.answer(request)


def chat_prompt(service: Service, asked: ChatRequest) -> list[int] | Prompt:
    """The prompt of a conversation, by the checkpoint's template.

    Raises:
        ApiError: on a role that is none.
        SteerError: on messages that no template can read, or that this one refuses.
    """
    template = service.engine.tokenizer.chat_templates.choose(None, asked.tools is not None)
    variables = dict(asked.chat_template_kwargs or {})
    for name in sorted(variables.keys() & set(_NO_VARIABLES)):
        where = f"chat_template_kwargs.{name}"
        raise ApiError(400, f"{where}: this is no variable of a template", param=where)
    if asked.reasoning_effort is not None and "enable_thinking" in template.reads:
        variables.setdefault("enable_thinking", asked.reasoning_effort != "none")
    _check_roles(asked.messages)
    return service.engine.chat(
        asked.messages,
        asked.tools,
        asked.add_generation_prompt,
        documents=asked.documents,
        continue_final_message=bool(asked.continue_final_message),
        **variables,
    )


def _check_roles(messages: Sequence[dict[str, Any]]) -> None:
    for index, message in enumerate(messages):
        if message.get("role") not in _ROLES:
            where = f"messages[{index}].role"
            raise ApiError(400, f"{where}: expected one of {', '.join(_ROLES)}", param=where)


def _read_prompts(service: Service, asked: ChatRequest) -> Sequence[AnyPrompt]:
    return [chat_prompt(service, asked)]


def _choices(job: Job, done: Sequence[Completion]) -> list[dict[str, Any]]:
    ids = job.answers[0].prompt_token_ids
    thinking = opens_thinking(job.service.token_texts.tail(ids))
    return [_choice(job, index, each, thinking) for index, each in enumerate(done)]


def _choice(job: Job, index: int, done: Completion, thinking: bool) -> dict[str, Any]:
    thoughts, content = split_reasoning(done.text, thinking)
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if thoughts:
        message |= {"reasoning": thoughts, "reasoning_content": thoughts}
    logprobs = None
    if job.asked.top is not None and done.logprobs is not None:
        texts = job.service.token_texts
        logprobs = chat_logprobs(texts, done.token_ids, done.logprobs, job.asked.top)
    choice = {
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": finish_reason(done),
        "stop_reason": stop_reason(done),
    }
    return choice | ({"token_ids": done.token_ids} if job.asked.return_token_ids else {})


def _prompt_fields(job: Job, done: Sequence[Completion]) -> dict[str, Any]:
    ids, made = list(job.answers[0].prompt_token_ids), dict[str, Any]()
    if job.asked.return_token_ids:
        made["prompt_token_ids"] = ids
    if job.asked.prompt_logprobs is not None:
        texts = job.service.token_texts
        made["prompt_logprobs"] = scored_prompt(texts, ids, done[0].prompt_logprobs)
    return made


ENDPOINT = Endpoint(
    fields=ChatRequest,
    prefix="chatcmpl",
    kind="chat.completion",
    count=lambda asked: 1,
    read_prompts=_read_prompts,
    chunks=ChatChunks,
    choices=_choices,
    more=_prompt_fields,
)
