"""The folder of a run's results. New results are appended, nothing is replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from engine.errors import SteerError

ROWS, EVENTS, LOG, SUMMARY = "rows.jsonl", "events.jsonl", "log.txt", "summary.txt"


def open_folder(path: Path) -> Path:
    """The folder, made if it is missing. SteerError if it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name in (ROWS, EVENTS, LOG, SUMMARY):
            (path / name).open("a").close()
    except OSError as error:
        raise SteerError(
            f"--out {path}: cannot be written ({error.strerror}); name a folder that can"
        ) from None
    return path


def tell(folder: Path, **event: Any) -> None:
    """Append an event: one line, in one write, so that processes do not mix their lines."""
    line = (json.dumps(event) + "\n").encode()
    handle = os.open(folder / EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line)
    finally:
        os.close(handle)


class Follower:
    """Reads the lines that are appended to a file of JSON lines from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = path.stat().st_size if path.exists() else 0

    def new(self) -> list[dict[str, Any]]:
        """Complete lines since the last call. A line that a kill cut off is left out."""
        with self._path.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        found = []
        for line in whole.splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found
