"""Log lines of a server, as text or as JSON. No line has a prompt, an answer or an error's text.

A record's ``fields`` (``extra={"fields": {...}}``) are its values by name. Of an exception its type
and its places in the code are written, not its message, which may quote what a client sent.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
_LOGGERS = ("engine", "uvicorn")

log = logging.getLogger("engine.serve")


def configure(form: str, level: str) -> None:
    """Write the lines of this package and of the HTTP server to standard error.

    Args:
        form: one of ``FORMATS``.
        level: one of ``LEVELS``, the lowest that is written.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
    if level != "debug":  # its start and end, which we say ourselves
        logging.getLogger("uvicorn").setLevel(logging.WARNING)


def announce(message: str) -> None:
    """Say a line at every level: as it is, or as JSON where the lines are."""
    forms = [h.formatter for h in logging.getLogger("engine").handlers]
    if any(isinstance(form, JsonLines) for form in forms):
        record = log.makeRecord(log.name, logging.INFO, "", 0, message, (), None)
        message = JsonLines().format(record)
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def places(error: BaseException) -> str:
    """An exception's type and where it was raised, the innermost place last; no message."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " > ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames)
    return f"{type(error).__name__} at {where}"


class TextLines(logging.Formatter):
    """``2026-12-01T09:30:00.123Z info request id=... status=200``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of a record."""
        fields = _fields(record)
        start = f"{_moment(record)} {record.levelname.lower()} {_event(record)}"
        values = (f"{name}={_text(value)}" for name, value in fields.items() if value is not None)
        return " ".join([start, *values])


class JsonLines(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``event`` and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of a record."""
        start = {"time": _moment(record), "level": record.levelname.lower()}
        fields = {name: value for name, value in _fields(record).items() if value is not None}
        line = {**start, "event": _event(record), **fields}
        return orjson.dumps(line, default=str).decode()


def _event(record: logging.LogRecord) -> str:
    return " ".join(record.getMessage().split())


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    error = record.exc_info[1] if record.exc_info else None
    return dict(fields) if error is None else {**fields, "error": places(error)}


def _moment(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    text = str(value)
    return orjson.dumps(text).decode() if " " in text or '"' in text else text
