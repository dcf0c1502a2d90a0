"""What a conversation may hold, and the form in which a template gets it.

Clients send what OpenAI's interface allows: contents in parts, calls of tools with their arguments
as JSON text, instructions by a "developer". Templates were written for one form of each.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Never

from engine.errors import SteerError

if TYPE_CHECKING:
    from engine.text.template_fields import FieldUse

REASONING = ("reasoning_content", "thinking", "reasoning")
_DEVELOPER, _SYSTEM, _ASSISTANT = "developer", "system", "assistant"
_NEED_CONTENT = (_DEVELOPER, _SYSTEM, "user", "tool")
_PART = '{"type": "text", "text": ...}'
_SHOWN = 80  # characters of a wrong value in an error


def normalised(messages: list[Any], use: FieldUse, source: str) -> list[dict[str, Any]]:
    """The messages as a template expects them.

    A content in parts becomes one text, its parts following one another directly, unless the
    template takes it apart; a "developer" becomes a "system" unless the template knows the word;
    arguments of calls become objects unless the template writes them as text.

    Args:
        messages: plain JSON values; changed in place.
        use, source: of the template.

    Raises:
        SteerError: on a message that is malformed, with its index, of the field "messages".
    """
    return [_Message(index, message, use, source).made() for index, message in enumerate(messages)]


class _Message:
    """One message of a conversation; ``index``: its place, for errors."""

    def __init__(self, index: int, message: Any, use: FieldUse, source: str) -> None:
        self._where, self._use = f"messages[{index}]", use
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise self._wrong(
                f'a message must be {{"role": ..., "content": ...}}, got {message!r:.{_SHOWN}}'
            )
        self._role = message["role"]
        # Clients send null for what they leave out; templates ask whether it is there.
        self._fields = {name: value for name, value in message.items() if value is not None}
        if self._role == _DEVELOPER and _DEVELOPER not in source:
            self._fields["role"] = _SYSTEM

    def _wrong(self, what: str) -> SteerError:
        return SteerError(f"{self._where}: {what}", "messages")

    def made(self) -> dict[str, Any]:
        """The message, without empty fields, its thoughts under each name that templates use."""
        if "tool_calls" in self._fields:
            self._check_calls(self._fields["tool_calls"])
        self._set_content()
        kept = self._fields
        reasoning = next((kept[name] for name in REASONING if name in kept), None)
        if reasoning is None:
            return kept
        return {"thinking": reasoning, **kept, "reasoning_content": reasoning}

    def _set_content(self) -> None:
        content = self._fields.get("content")
        if content is None:
            self._set_no_content()
        elif isinstance(content, list):
            texts = [self._text(number, part) for number, part in enumerate(content)]
            if not self._use.parts:
                self._fields["content"] = "".join(texts)
        elif not isinstance(content, str | dict):  # an object may be what a tool returned
            raise self._wrong(f"content must be text or a list of parts, got {content!r:.{_SHOWN}}")

    def _set_no_content(self) -> None:
        if self._role in _NEED_CONTENT:
            raise self._wrong(f"the content of a {self._role} message must be text, got null")
        called = self._role == _ASSISTANT and self._fields.get("tool_calls")
        if called and self._use.null == "none":
            self._fields["content"] = None
        elif called and not self._use.null:
            self._fields["content"] = ""

    def _text(self, number: int, part: Any) -> str:
        """The text of a part of the content; "" of one that the template is to take as it is."""
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if isinstance(part, dict) and kind == "text" and isinstance(part.get("text"), str):
            return str(part["text"])
        if self._use.parts and kind != "text" and part == {"type": kind}:
            return ""  # holds nothing that could get lost
        if isinstance(kind, str) and kind != "text":
            raise self._wrong(
                f"part {number} of the content is of the type {kind[:_SHOWN]!r}, which these "
                f"models cannot read; a part must be {_PART}"
            )
        raise self._wrong(
            f"part {number} has no text in 'content'; it must be {_PART}, got {part!r:.{_SHOWN}}"
        )

    def _check_calls(self, calls: Any) -> None:
        """Make the arguments of the calls what the template expects, in place."""
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise self._wrong(f"tool_calls must be a list of objects, got {calls!r:.{_SHOWN}}")
        for number, call in enumerate(calls):
            called = call.get("function", call)
            if not isinstance(called, dict):
                raise self._wrong(
                    f"tool_calls[{number}]: function must be an object, got {called!r:.{_SHOWN}}"
                )
            if isinstance(given := called.get("arguments"), str):
                parsed = self._arguments(number, given)
                if not self._use.arguments_as_text:
                    called["arguments"] = parsed

    def _arguments(self, number: int, text: str) -> dict[str, Any]:
        """Arguments from their JSON; those of a call without any may be an empty text."""
        try:
            parsed = json.loads(text, parse_constant=_no_number) if text.strip() else {}
        except (ValueError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict):
            raise self._wrong(
                f"tool_calls[{number}]: arguments must be a JSON object as text, got "
                f"{text!r:.{_SHOWN}}"
            )
        return parsed


def _no_number(name: str) -> Never:
    raise ValueError(f"{name} is no JSON")
