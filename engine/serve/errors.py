"""Errors as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from engine.errors import QueueFullError, SteerError, UnavailableError

LONGEST = 1000  # characters of a message
_RETRY_SECONDS = "1"
_STOPPING_SECONDS = 5.0
# A retry would fail in the same way.
_NO_RETRY = {"x-should-retry": "false"}


@dataclass(eq=False)
class ApiError(Exception):
    """An answer that is an error.

    status: of HTTP.
    message: one line for people.
    type, param, code: as OpenAI's: a class, the parameter at fault, a word for programs.
    headers: to be sent with it.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> bytes:
        """The answer's body: ``{"error": {"message", "type", "param", "code"}}``."""
        message = _one_line(self.message)
        error = {"message": message, "type": self.type, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def response(self) -> Response:
        """The whole answer."""
        return Response(self.body(), self.status, dict(self.headers), "application/json")


class CutShortError(ApiError):
    """An answer that was ended before it was whole.

    cause: one of ``engine.serve.metrics.ABORTS``.
    """

    cause = "error"


def of(error: Exception) -> ApiError:
    """The answer to an exception. What is not the request's fault is a 500 without its message."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return of_validation(error.errors(include_url=False, include_input=False))
    if isinstance(error, QueueFullError):
        wait = {"Retry-After": _RETRY_SECONDS}
        return ApiError(429, str(error), "rate_limit_error", code="slow_down", headers=wait)
    if isinstance(error, UnavailableError):
        text = "this server takes no new requests: it is stopping, or its engine has failed"
        return unavailable(text, _STOPPING_SECONDS)
    if isinstance(error, SteerError):
        too_long = type(error).__name__ == "ContextLengthError"
        code = "context_length_exceeded" if too_long else None
        return ApiError(400, str(error), param=getattr(error, "field", None), code=code)
    if isinstance(error, HTTPException):
        kind = "invalid_request_error" if error.status_code < 500 else "server_error"
        return ApiError(error.status_code, str(error.detail), kind, headers=error.headers or {})
    return ApiError(500, "the server failed on this request", "server_error", headers=_NO_RETRY)


def of_validation(found: Sequence[Mapping[str, Any]]) -> ApiError:
    """The answer to what pydantic found: the first fault, with nothing of the input in it."""
    first = found[0]
    param = _path(first.get("loc", ()))
    text = f"{param}: {first['msg']}" if param else str(first["msg"])
    return ApiError(400, text, param=param or None)


def unavailable(message: str, seconds: float) -> ApiError:
    """503, to be tried again after so many seconds."""
    wait = {"Retry-After": str(max(1, round(seconds)))}
    return ApiError(503, message, "server_error", code="server_is_overloaded", headers=wait)


def cut_short(reason: str, cause: str | None, detail: str | None = None) -> CutShortError | None:
    """The error of an answer that is not what was asked for; None if it is.

    Args:
        reason: its finish reason.
        cause: what it was aborted for, as ``Answers.cause``.
        detail: its completion's error.
    """
    if reason == "deadline":
        text, headers = "the request's time is over before its answer", _NO_RETRY
        error = CutShortError(408, text, "timeout_error", headers=headers)
        error.cause = "deadline"
    elif reason == "abort" and cause == "drain":
        like = unavailable("the server is stopping: this answer was ended", _STOPPING_SECONDS)
        error = CutShortError(like.status, like.message, like.type, None, like.code, like.headers)
        error.cause = "drain"
    elif reason == "error" or (reason == "abort" and cause is None):
        why = "a model's logits were unusable, or its computation failed"
        text = detail or f"the answer ended in an error: {why}"
        error = CutShortError(500, text, "server_error", headers=_NO_RETRY)
    else:
        return None
    return error


def unknown_model(names: Sequence[str]) -> ApiError:
    """404 to a model name that is none of ``names``."""
    listed = ", ".join(names)
    message = f"there is no such model here; served: {listed}"
    return ApiError(404, message, param="model", code="model_not_found")


def _path(parts: Sequence[object]) -> str:
    """``messages[0].content`` of ("messages", 0, "content"); without names of pydantic's types."""
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif str(part).isidentifier() and part != "body":
            path += f".{part}" if path else str(part)
    return path[:200]


def _one_line(message: str) -> str:
    """A message without line ends, at most LONGEST characters, that can be written as UTF-8."""
    line = " ".join(message.split()).encode("utf-8", "replace").decode()
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."
