"""A conversation as clients send it becomes one that chat templates read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from engine.serve.errors import ApiError

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def readable_messages(
    messages: Sequence[Mapping[str, Any]], knows_developer: bool
) -> list[dict[str, Any]]:
    """Messages with text as content, and the arguments of tool calls as objects.

    Args:
        messages: as they came.
        knows_developer: whether the template has the role "developer"; else it becomes "system".

    Raises:
        ApiError: 400, naming the message, on an unknown role, a content that is no text, and
            arguments that are no JSON.
    """
    read = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        role = message.get("role")
        if role not in _ROLES:
            raise _bad(f"{where}.role", f"expected one of {', '.join(_ROLES)}")
        calls = message.get("tool_calls")
        made = {name: value for name, value in message.items() if value is not None}
        if role == "developer" and not knows_developer:
            made["role"] = "system"
        if calls is not None:
            made["tool_calls"] = _calls(calls, f"{where}.tool_calls")
        made["content"] = _text(
            message.get("content"), f"{where}.content", role == "assistant" and bool(calls)
        )
        read.append(made)
    return read


def _text(content: Any, where: str, may_be_null: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and may_be_null:
        return ""
    if not isinstance(content, list):
        raise _bad(where, "expected a text, or a list of text parts")
    return "\n".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise _bad(where, 'expected a part as {"type": "text", "text": ...}')
    if kind not in _TEXT_PARTS:
        raise _bad(where, f"a part of type {kind[:40]!r} cannot be read: this pair reads text only")
    text = part.get(_TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise _bad(where, f"expected a text as {_TEXT_PARTS[kind]!r}")
    return text


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise _bad(where, "expected a list of objects")
    return [_call(call, f"{where}[{i}].function") for i, call in enumerate(calls)]


def _call(call: dict[str, Any], where: str) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _bad(where, 'expected {"name": ..., "arguments": ...}')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments or "{}")
        except orjson.JSONDecodeError:
            raise _bad(f"{where}.arguments", "the text is not valid JSON") from None
    if arguments is not None and not isinstance(arguments, dict):
        raise _bad(f"{where}.arguments", "expected a JSON object")
    return {**call, "function": {**function, "arguments": arguments or {}}}


def _bad(where: str, what: str) -> ApiError:
    return ApiError(400, f"{where}: {what}", param=where)
