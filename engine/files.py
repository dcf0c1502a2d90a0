"""Text files that a user names: reading whole ones, writing JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from engine.errors import SteerError


def read_text(path: Path, what: str) -> str:
    """The file's text. SteerError that names the file where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SteerError(f"{path}: no such {what}") from None
    except UnicodeDecodeError as error:
        raise SteerError(f"{path}: not UTF-8 text: {error}") from None
    except OSError as error:
        raise SteerError(f"{path}: cannot be read: {error.strerror}") from None


class JsonLines:
    """Writes one JSON object a line, flushed at once; without a path it writes nothing."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("w", encoding="utf-8") if path else None

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file:
            self._file.close()

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        if self._file:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
