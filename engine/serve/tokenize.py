"""POST /tokenize and /detokenize."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from engine.request import Prompt
from engine.serve.body import read_json
from engine.serve.chat import chat_prompt
from engine.serve.documented import ERRORS, body_of
from engine.serve.errors import ApiError
from engine.serve.fields import ChatRequest, DetokenizeRequest, TokenizeRequest, read_fields
from engine.serve.service import Service, clear_errors, counted_rejections

router = APIRouter(responses=ERRORS)


@router.post("/tokenize", openapi_extra=body_of(TokenizeRequest, ChatRequest))
async def tokenize(request: Request) -> Response:
    """The ids of a text, or of a conversation; of the small model's tokenizer if they differ."""
    service: Service = request.app.state.service
    with clear_errors():
        raw = await read_json(request)
        kind = ChatRequest if isinstance(raw, dict) and "messages" in raw else TokenizeRequest
        asked: Any = read_fields(kind, raw, service.settings)
        service.routes.find(asked.model, None)
        with counted_rejections(service), service.served.room(1):
            ids = await asyncio.to_thread(_ids, service, asked)
        answer: dict[str, Any] = {
            "count": len(ids),
            "max_model_len": service.engine.max_context,
            "tokens": ids,
        }
        if isinstance(raw, dict) and raw.get("return_token_strs") is True:
            answer["token_strs"] = [service.token_texts.text_of(token) for token in ids]
        return Response(orjson.dumps(answer), media_type="application/json")


@router.post("/detokenize", openapi_extra=body_of(DetokenizeRequest))
async def detokenize(request: Request) -> Response:
    """The text of ids."""
    service: Service = request.app.state.service
    with clear_errors():
        raw = await read_json(request)
        asked = read_fields(DetokenizeRequest, raw, service.settings)
        service.routes.find(asked.model, None)
        size = service.engine.tokenizer.size
        if any(token >= size for token in asked.tokens):
            raise ApiError(400, f"tokens must be ids in 0..{size - 1}", param="tokens")
        text = await asyncio.to_thread(service.engine.tokenizer.text_of, asked.tokens)
        return Response(orjson.dumps({"prompt": text}), media_type="application/json")


def _ids(service: Service, asked: Any) -> list[int]:
    if isinstance(asked, ChatRequest):
        prompt = chat_prompt(service, asked)
        return list(prompt.small) if isinstance(prompt, Prompt) else list(prompt)
    special = asked.add_special_tokens is not False
    ids: list[int] = service.engine.tokenizer.encode(asked.prompt, special=special)
    return ids
