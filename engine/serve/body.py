"""The JSON body of a request, read with a limit."""

from __future__ import annotations

import asyncio

import orjson
from starlette.requests import Request

from engine.serve.errors import ApiError

_PATIENCE = 60.0  # seconds without a byte of the body


async def read_json(request: Request) -> object:
    """The body, parsed. The app's ``state.settings`` have the limit.

    Raises:
        ApiError: 415 if its header does not say JSON, 413 if it is too long, 400 if it is not
            valid JSON (NaN, lone surrogates and numbers beyond 64 bits are not), 408 if it stalls.
        starlette.requests.ClientDisconnect: if the client has gone.
    """
    _check_type(request)
    limit = request.app.state.settings.max_body_bytes
    body = await _read(request, limit)
    if not body.strip():
        raise ApiError(400, "the body is empty: send a JSON object")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        fault = error.msg.partition(": line ")[0]
        raise ApiError(400, f"the body is not valid JSON: {fault} ({place})") from None


def _check_type(request: Request) -> None:
    """A page of another origin can send a form or plain text unasked, but not this type."""
    kind, _, rest = request.headers.get("content-type", "").partition(";")
    charset = rest.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8", "utf8"):
        raise ApiError(415, "send the body as Content-Type: application/json, in UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "send the body without a Content-Encoding")


async def _read(request: Request, limit: int) -> bytes:
    """The body's bytes; what its header says is too long is refused before it is sent."""
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > limit:
        raise _too_long(limit)
    parts: list[bytes] = []
    size = 0
    clock = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(_PATIENCE) as patience:
            async for part in request.stream():
                patience.reschedule(clock() + _PATIENCE)
                size += len(part)
                if size > limit:
                    raise _too_long(limit)
                parts.append(part)
    except TimeoutError:
        raise ApiError(408, f"no more of the body came within {_PATIENCE:g} s") from None
    return b"".join(parts)


def _too_long(limit: int) -> ApiError:
    return ApiError(413, f"the body is longer than {limit} bytes (--max-body-bytes)")
