"""From the bytes of an answer and their times to its record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import h11

from bench.serve.records import OK, Record
from engine.files import parse_json

_TEXTS = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls")


def read_answer(parser: h11.Connection, pieces: Sequence[tuple[float, bytes]], to: Record) -> None:
    """Fill in a record: tokens, their times, finish reason; and its outcome if that is "ok".

    ``parser``: has sent the request. ``pieces``: what each read brought, with its time.
    """
    reader = _Reader(to)
    whole = False
    try:
        for at, data in pieces:
            parser.receive_data(data)
            whole = reader.take(at, parser) or whole
        if pieces and not whole:  # an answer may end with its connection
            parser.receive_data(b"")
            whole = reader.take(pieces[-1][0], parser)
    except h11.RemoteProtocolError as error:
        to.message = to.message or str(error)
    reader.finish()
    if to.outcome != OK:  # the client has closed: what follows from that is no error
        to.message = ""
    elif reader.status not in (0, 200):
        to.outcome, to.message = f"http {reader.status}", _line(reader.body)
    elif reader.error:
        to.outcome, to.message = "stream error", reader.error
    elif not (whole and reader.ended):
        to.outcome = "broken off" if reader.status else "no connection"


class _Reader:
    """Reads the events of one answer."""

    def __init__(self, to: Record) -> None:
        self.status = 0
        self.body = b""  # of an answer that is no stream, or the begun line of one that is
        self.error = ""
        self.ended = False  # a finish reason or [DONE] has come
        self._to = to
        self._usage: int | None = None
        self._counted = False  # in the way that the record's ``measured`` says

    def take(self, at: float, parser: h11.Connection) -> bool:
        """The events that one read made complete; True at the end of the message."""
        new = 0
        over = False
        while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Response):
                self.status = event.status_code
            elif isinstance(event, h11.Data):
                self.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                over = True
            elif isinstance(event, h11.ConnectionClosed):
                break
        if self.status == 200:
            new = sum(map(self._tokens_of, self._events()))
        if new:
            self._to.arrivals.append(at)
            self._to.counts.append(new)
        return over

    def finish(self) -> None:
        """The number of tokens, once all was read."""
        self._to.tokens = sum(self._to.counts) if self._usage is None else self._usage

    def _events(self) -> Iterator[Any]:
        *lines, self.body = self.body.split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            text = line[5:].strip()
            if text == b"[DONE]":
                self.ended = True
                continue
            try:
                yield parse_json(text)
            except ValueError:
                self.error = f"not JSON: {_line(text)}"

    def _tokens_of(self, chunk: Any) -> int:
        """New tokens of a chunk; where it does not tell, 1 if there is any text."""
        to = self._to
        if not isinstance(chunk, dict) or chunk.get("error"):
            self.error = _message(chunk)
            return 0
        choices = chunk.get("choices")
        choice = choices[0] if choices and isinstance(choices[0], dict) else {}
        if choice.get("finish_reason"):
            to.finish = choice["finish_reason"]
            self.ended = True
        usage, ids = chunk.get("usage"), choice.get("token_ids")
        if usage:
            to.prompt_tokens = usage.get("prompt_tokens")
        told: int | None = usage.get("completion_tokens") if usage else None
        before = self._usage
        if told is not None:
            self._usage = told
            if to.measured == "usage" or (choices and not self._counted):
                to.measured, self._counted = "usage", True
                return max(0, told - (before or 0))
        if ids is not None and to.measured != "usage":
            to.measured, self._counted = "ids", True
            return len(ids)
        new = int(to.measured == "chunks" and _has_text(choice))
        self._counted = self._counted or new > 0
        return new


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(choice.get("text") or any(delta.get(name) for name in _TEXTS))


def _message(chunk: Any) -> str:
    error = chunk.get("error") if isinstance(chunk, dict) else chunk
    return str(error.get("message") if isinstance(error, dict) else error)[:200]


def _line(body: bytes) -> str:
    """The message in an error's body, in one line."""
    try:
        return " ".join(_message(parse_json(body)).split())
    except ValueError:
        return " ".join(body.decode(errors="replace").split())[:200]
