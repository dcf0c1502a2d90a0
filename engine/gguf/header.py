"""Reads the header of a GGUF file: its metadata and its list of tensors, every size checked.

Source: the GGUF specification (ggml-org/ggml, docs/gguf.md), versions 2 and 3, little-endian. The
``gguf`` package reads headers too, but makes three objects for each token of a vocabulary (seconds
and hundreds of megabytes for a model of 1 GB) and does not notice a truncated file.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import SteerError
from engine.gguf.formats import format_of

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_BOOL, _STRING, _ARRAY = 7, 8, 9
# Type codes of values, and the format characters of struct and NumPy for them.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_DIMENSIONS = 4
_ALIGNMENT = 32
_LONGEST = 2**16  # bytes of a name
_LONGEST_HEADER = 100_000_000  # bytes: the limit of safetensors
_MOST = 2**24  # entries of an array


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in its file.

    shape: rows first, as in PyTorch (the file has the reverse order).
    format: the format of its numbers, such as "Q4_K".
    first, bytes: offset in the file and size, in bytes.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    format: str
    first: int
    bytes: int


@dataclass(frozen=True)
class Header:
    """What a file holds before its numbers: metadata ``fields`` by key, tensors by name."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, TensorEntry]


def read_header(path: Path) -> Header:
    """Read a file's header. SteerError, naming the file, if it is malformed."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).header()
    except SteerError:  # which is a ValueError too
        raise
    except OSError as error:
        raise SteerError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, UnicodeDecodeError) as error:  # an empty file cannot be mapped
        raise SteerError(f"{path}: not a readable GGUF file: {error}") from None


class _Reader:
    """Reads the header from front to back; ValueError where it is malformed."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._place = path, data, 0

    def header(self) -> Header:
        if self._bytes(4) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self._number("I")
        if version not in _VERSIONS:
            raise ValueError(f"version {version} is not supported: 2 and 3 (little-endian) are")
        tensors, count = self._number("Q"), self._number("Q")
        fields = self._unique(count, self._field, "key")
        entries = self._unique(tensors, self._tensor, "tensor")
        alignment = fields.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
            raise ValueError(f"general.alignment must be a multiple of 8, got {alignment!r}")
        first = -(-self._place // alignment) * alignment
        return Header(self._path, fields, self._placed(entries, first, alignment))

    def _unique(self, count: int, read: Callable[[], tuple[str, Any]], what: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for _ in range(count):  # each entry takes bytes: a wrong count soon reaches the end
            name, value = read()
            if name in values:
                raise ValueError(f"{what} {name} appears twice")
            values[name] = value
        return values

    def _field(self) -> tuple[str, Any]:
        key = self._text(_LONGEST)
        try:
            return key, self._value(self._number("I"))
        except ValueError as error:
            raise ValueError(f"key {key!r}: {error}") from None

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _BOOL:
            return self._number("B") != 0
        if kind == _ARRAY:
            return self._array(self._number("I"), self._number("Q"))
        if kind not in _NUMBERS:
            raise ValueError(f"its type {kind} is unknown")
        return self._number(_NUMBERS[kind])

    def _array(self, kind: int, count: int) -> list[Any]:
        if count > _MOST:
            raise ValueError(f"an array of {count} entries, {_MOST} are the most")
        if kind == _STRING:
            return [self._text() for _ in range(count)]
        if kind != _BOOL and kind not in _NUMBERS:
            raise ValueError(f"arrays of type {kind} are not supported")
        dtype = np.dtype("?" if kind == _BOOL else f"<{_NUMBERS[kind]}")
        entries: list[Any] = np.frombuffer(self._bytes(count * dtype.itemsize), dtype).tolist()
        return entries

    def _tensor(self) -> tuple[str, tuple[tuple[int, ...], str, int, int]]:
        name = self._text(_LONGEST)
        count = self._number("I")
        if not 1 <= count <= _DIMENSIONS:
            raise ValueError(f"tensor {name} has {count} dimensions")
        shape = tuple(self._number("Q") for _ in range(count))[::-1]
        if min(shape) < 1:
            raise ValueError(f"tensor {name} has shape {shape}")
        try:
            format = format_of(self._number("I"))
            size = format.bytes(shape)
        except SteerError:
            raise
        except ValueError as error:
            raise ValueError(f"tensor {name}: {error}") from None
        return name, (shape, format.name, self._number("Q"), size)

    def _placed(
        self, entries: dict[str, Any], first: int, alignment: int
    ) -> dict[str, TensorEntry]:
        """Tensors with their places; ValueError where they overlap or pass the file's end."""
        placed, end = {}, first
        for name, (shape, format, offset, size) in sorted(entries.items(), key=lambda e: e[1][2]):
            begin = first + offset
            if offset % alignment or begin < end:
                raise ValueError(
                    f"tensor {name} begins at byte {begin}: inside another, or not at a multiple "
                    f"of {alignment} from the first"
                )
            end = begin + size
            if end > len(self._data):
                raise ValueError(
                    f"tensor {name} ends at byte {end} of {len(self._data)}: the file is cut off"
                )
            placed[name] = TensorEntry(self._path, name, shape, format, begin, size)
        return placed

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self._bytes(struct.calcsize(f"<{code}")))
        return value

    def _text(self, longest: int | None = None) -> str:
        size = self._number("Q")
        if longest is not None and size > longest:
            raise ValueError(f"a name of {size} bytes at byte {self._place}")
        return self._bytes(size).decode()

    def _bytes(self, size: int) -> bytes:
        end = self._place + size
        if end > len(self._data):
            raise ValueError(f"the file is cut off at byte {len(self._data)}, within its header")
        if end > _LONGEST_HEADER:
            raise ValueError(f"its header is longer than {_LONGEST_HEADER} bytes")
        data = self._data[self._place : end]
        self._place = end
        return data
