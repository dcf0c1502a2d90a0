"""A GGUF checkpoint: one file, or all the parts that llama.cpp split it into."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from engine.errors import SteerError
from engine.gguf.header import Header, TensorEntry, read_header

_SPLIT = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)", re.IGNORECASE
)


class GgufFile:
    """The metadata of a checkpoint and the places of its tensors; no file is kept open.

    path: as given; where there are several parts, that of any of them.
    tensors: places by the tensors' names in the file.
    """

    def __init__(self, path: Path) -> None:
        """SteerError, naming the file, on one that is missing or malformed."""
        self.path = path
        headers = [read_header(each) for each in _paths(path)]
        self._fields = headers[0].fields
        _check_split(path, headers)
        self.tensors = _joined(headers)

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """A value of the metadata, or ``default`` if the key is missing.

        SteerError if the value's type is not ``kind``.
        """
        value = self._fields.get(key, default)
        if value is default:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            right = " or ".join(each.__name__ for each in kinds)
            raise SteerError(f"{self.path}: {key} must be {right}, got {short(value)}")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of strings; SteerError if the key has no such list."""
        values = self.get(key, list)
        if not values or not all(isinstance(text, str) for text in values):
            raise SteerError(f"{self.path}: {key} must be a list of texts, got {short(values)}")
        return list(values)

    def __str__(self) -> str:
        return str(self.path)

    def keys(self, prefix: str) -> list[str]:
        """The keys that begin with ``prefix``."""
        return [key for key in self._fields if key.startswith(prefix)]


def is_gguf(path: Path) -> bool:
    """Whether a checkpoint's path names a GGUF file, by its ending."""
    return path.suffix.lower() == ".gguf"


def short(value: Any) -> str:
    """A value in a message: one line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _paths(path: Path) -> list[Path]:
    """Paths of all parts in order. SteerError for the first that is missing."""
    parts = _SPLIT.fullmatch(path.name)
    count = int(parts["count"]) if parts else 1
    if parts and not 1 <= int(parts["number"]) <= count:
        raise SteerError(f"{path}: there is no part {int(parts['number'])} of {count}")
    names = (
        [f"{parts['stem']}-{n:05}-of-{count:05}{parts['end']}" for n in range(1, count + 1)]
        if parts
        else [path.name]
    )
    paths = [path.with_name(name) for name in names]
    for each in paths:
        if each.is_dir():
            raise SteerError(f"{each}: is a folder, expected a GGUF file")
        if not each.is_file():
            of = f", part of the {count} of {path.name}" if parts else ""
            raise SteerError(f"{each}: no such GGUF file{of}")
    return paths


def _joined(headers: list[Header]) -> dict[str, TensorEntry]:
    tensors: dict[str, TensorEntry] = {}
    for header in headers:
        for name, entry in header.tensors.items():
            if name in tensors:
                raise SteerError(f"{header.path}: tensor {name} appears twice")
            tensors[name] = entry
    return tensors


def _check_split(path: Path, headers: list[Header]) -> None:
    """SteerError unless each part's metadata agrees with its name: its number, and of how many."""
    for number, header in enumerate(headers):
        count = header.fields.get("split.count", 1)
        place = header.fields.get("split.no", 0)
        if (count or 1, place) != (len(headers), number):
            named = f"part {number + 1} of {len(headers)}" if len(headers) > 1 else "a whole file"
            part = place + 1 if isinstance(place, int) else short(place)
            raise SteerError(
                f"{header.path}: is part {part} of {short(count)} by its metadata, {named} by its "
                "name"
            )
    total = headers[0].fields.get("split.tensors.count")
    held = sum(len(header.tensors) for header in headers)
    if len(headers) > 1 and total is not None and total != held:
        raise SteerError(f"{path}: {total} tensors are announced, its parts hold {held}")
