"""The safetensors files of one folder: what they hold, checked, and their tensors one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard

from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import SteerError
from engine.files import read_json

_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2,
          "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit


class Shards:
    """Maps the files of a folder and reads tensors of them.

    As a context manager it keeps files open. Leaving it unmaps them: pages that were read count as
    the process's memory until then.
    """

    source = "config.json"  # of the shapes that are asked for

    def __init__(self, folder: Path) -> None:
        """SteerError that names the file, and the tensor where there is one, on a bad folder."""
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}  # as safetensors writes them, "BF16"
        self._files: dict[str, Path] = {}
        self._stack, self._open = ExitStack(), dict[Path, Any]()
        for path in _paths(folder):
            self._list(path)

    def __enter__(self) -> Shards:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.clear()
        self._stack.close()

    def path(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._files[name]

    def read(self, name: str) -> Tensor:
        """A view of the mapped file, or a copy: not to be kept beyond this context, nor written."""
        path = self._files[name]
        try:
            if path not in self._open:
                self._open[path] = self._stack.enter_context(safe_open(path, framework="pt"))
            return self._open[path].get_tensor(name)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise SteerError(f"{path}: tensor {name} cannot be read: {error}") from None

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor's rows in turn: at once, since they are only mapped."""
        yield self.read(name)

    def _list(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if name in self._files:
                        raise SteerError(f"{path}: tensor {name} appears twice")
                    part = file.get_slice(name)
                    self.shapes[name] = tuple(part.get_shape())
                    self.dtypes[name] = str(part.get_dtype())
                    self._files[name] = path
        except (SafetensorError, OSError) as error:
            wrong = _first_wrong_tensor(path)
            raise SteerError(f"{path}: not a readable safetensors file: {wrong or error}") from None


def holds_weights(folder: Path) -> bool:
    """Whether there are safetensors, good or bad."""
    return (folder / _INDEX).is_file() or (folder / _SINGLE).is_file()


def _paths(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.is_file():
        single = folder / _SINGLE
        if not single.is_file():
            raise SteerError(f"{folder}: model.safetensors is missing (pickles are never loaded)")
        return [single]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SteerError(f"{index}: expected a weight_map from tensor names to files")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise SteerError(f"{index}: shard {name!r} is not a safetensors file of this folder")
        if not (folder / name).is_file():
            raise SteerError(f"{folder}: shard {name} is missing")
    return [folder / name for name in names]


def _first_wrong_tensor(path: Path) -> str | None:
    """Which tensor of a refused file is wrong, in words; the library does not always say."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LONGEST_HEADER:
                return None
            header = json.loads(file.read(length))
        data = path.stat().st_size - 8 - length
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(header, dict):
        return None
    end = 0
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    for name, entry in sorted(entries, key=_offset):
        wrong = _wrong(entry, end, data)
        if wrong:
            return f"tensor {name} {wrong}"
        end = entry["data_offsets"][1]
    return None


def _offset(item: tuple[str, Any]) -> tuple[int, ...]:
    entry = item[1]
    offsets = entry.get("data_offsets") if isinstance(entry, Mapping) else None
    return tuple(offsets) if _whole(offsets) else (-1,)


def _whole(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(i, int) and not isinstance(i, bool) for i in value
    )


def _wrong(entry: Any, end: int, data: int) -> str | None:
    """What is wrong with a tensor that should begin where the one before it ended."""
    if not isinstance(entry, Mapping) or not _whole(entry.get("shape")):
        return "has no shape of whole numbers"
    shape, offsets, dtype = entry["shape"], entry.get("data_offsets"), entry.get("dtype")
    if any(size < 0 for size in shape):
        return f"has a negative size: {shape}"
    if not _whole(offsets) or len(offsets) != 2:
        return f"has no pair of offsets: {offsets}"
    if not isinstance(dtype, str) or dtype not in _BYTES:
        return f"has an unknown dtype: {dtype}"
    first, last = offsets
    size = _BYTES[dtype]
    for extent in shape:
        size *= extent
    if first < end:
        return f"begins at byte {first}, inside the tensor that ends at {end}"
    if first > end:
        return f"begins at byte {first}, behind a hole that starts at {end}"
    if last - first != size:
        return f"takes {size} bytes by its shape {shape}, {last - first} by its offsets"
    if last > data:
        return f"ends at byte {last} of {data}: the file is cut off"
    return None
