"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from engine.request import Completion
from engine.serve.answering import AnyPrompt, Job, finish_reason, stop_reason
from engine.serve.completion_chunks import CompletionChunks, echoed_text
from engine.serve.documented import ANSWER_OR_STREAM, ERRORS, body_of
from engine.serve.endpoint import Endpoint
from engine.serve.fields import CompletionRequest
from engine.serve.logprobs import CompletionLogprobs, scored_prompt
from engine.serve.sampling import drops_text
from engine.serve.service import Service

router = APIRouter(responses=ERRORS)


@router.post(
    "/v1/completions", responses=ANSWER_OR_STREAM, openapi_extra=body_of(CompletionRequest)
)
async def completions(request: Request) -> Response:
    """Continue one or more texts."""
    return await ENDPOINT.answer(request)


def _read_prompts(service: Service, asked: CompletionRequest) -> Sequence[AnyPrompt]:
    """The prompts as they are: ``submit`` makes ids of a text off the loop."""
    return asked.prompts


def _choices(job: Job, done: Sequence[Completion]) -> list[dict[str, Any]]:
    return [_choice(job, index, each) for index, each in enumerate(done)]


def _choice(job: Job, index: int, done: Completion) -> dict[str, Any]:
    asked, prompt = job.asked, index // job.samples
    dropped = drops_text(asked)
    text = "" if dropped else done.text
    if asked.echo:
        text = echoed_text(job, prompt) + text
    choice = {
        "index": index,
        "text": text,
        "logprobs": None if asked.top is None else _logprobs(job, prompt, done),
        "finish_reason": "length" if dropped else finish_reason(done),
        "stop_reason": None if dropped else stop_reason(done),
    }
    ids = list(job.answers[prompt].prompt_token_ids)
    if asked.prompt_logprobs is not None:
        choice["prompt_logprobs"] = scored_prompt(
            job.service.token_texts, ids, done.prompt_logprobs
        )
    if asked.return_token_ids:
        choice |= {"prompt_token_ids": ids, "token_ids": [] if dropped else done.token_ids}
    return choice


def _logprobs(job: Job, prompt: int, done: Completion) -> dict[str, Any]:
    """Those of the answer, after those of the prompt with ``echo``."""
    ids, logprobs = list(done.token_ids), list(done.logprobs or ())
    if drops_text(job.asked):
        ids, logprobs = [], []
    if job.asked.echo:
        ids = [*job.answers[prompt].prompt_token_ids, *ids]
        logprobs = [*(done.prompt_logprobs or ()), *logprobs]
    return CompletionLogprobs(job.service.token_texts, job.asked.top).of(ids, logprobs)


ENDPOINT = Endpoint(
    fields=CompletionRequest,
    prefix="cmpl",
    kind="text_completion",
    count=lambda asked: len(asked.prompts),
    read_prompts=_read_prompts,
    chunks=CompletionChunks,
    choices=_choices,
)
