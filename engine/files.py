"""Text files that a user names: reading whole ones and JSON, writing JSON lines; folders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from engine.errors import SteerError


def path_of(path: object, what: str) -> Path:
    """The path. SteerError if it is neither text nor a Path."""
    if not isinstance(path, str | os.PathLike):
        raise SteerError(f"{what} must be text or a Path, got {path!r}")
    return Path(path)


def read_text(path: Path, what: str) -> str:
    """The file's text. SteerError that names the file where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SteerError(f"{path}: no such {what}") from None
    except UnicodeDecodeError as error:
        raise SteerError(f"{path}: not UTF-8 text: {error}") from None
    except OSError as error:
        raise SteerError(f"{path}: cannot be read: {error.strerror}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of a checkpoint folder. SteerError on anything else."""
    if not path.is_file():
        raise SteerError(
            f"{path.parent}: {path.name} is missing; expected a Hugging Face checkpoint folder"
        )
    try:
        content = parse_json(read_text(path, "file"))
    except ValueError as error:
        raise SteerError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise SteerError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


class Folder:
    """A checkpoint's folder: each of its JSON files is read once, however many modules need it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._objects: dict[str, dict[str, Any]] = {}

    def __str__(self) -> str:
        return str(self.path)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.path / name).is_file()

    def json(self, name: str) -> dict[str, Any]:
        """The object in a file, to be left as it is. SteerError on anything else."""
        if name not in self._objects:
            self._objects[name] = read_json(self.path / name)
        return self._objects[name]

    def optional_json(self, name: str) -> dict[str, Any]:
        """The object in a file; empty if there is no such file."""
        return self.json(name) if self.has(name) else {}


def parse_json(text: str | bytes) -> Any:
    """``json.loads``; ValueError also where values are nested more deeply than Python can read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None


class JsonLines:
    """Writes one JSON object a line, flushed at once; without a path it writes nothing.

    The file is opened at the first row: a run that writes none leaves an old file as it is.
    With ``append`` rows are added to those of an existing file.
    """

    def __init__(self, path: Path | None, append: bool = False) -> None:
        self._path = path
        self._mode = "a" if append else "w"
        self._file: IO[str] | None = None

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
        if self._path is None:
            return
        if self._file is None:
            self._file = self._path.open(self._mode, encoding="utf-8")
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def check_output(path: Path | None, what: str) -> None:
    """SteerError if no file can be written there; called before the work is done."""
    if path is None:
        return
    if path.is_dir():
        raise SteerError(f"{what} {path}: is a folder, expected a file")
    if not path.resolve().parent.is_dir():
        raise SteerError(f"{what} {path}: no such folder")
    if not os.access(path if path.exists() else path.resolve().parent, os.W_OK):
        raise SteerError(f"{what} {path}: no permission to write there")
