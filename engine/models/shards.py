"""The safetensors files of one folder: their checked list of tensors, and each tensor's data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard

from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import SteerError
from engine.files import parse_json, read_json

_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_LONGEST_HEADER = 100_000_000  # bytes, the format's own limit


class Shards:
    """Maps the files of a folder and reads their tensors.

    As a context manager it keeps files open. Leaving it unmaps them: until then, pages that were
    read count as the process's memory.
    """

    source = "config.json"  # where the expected shapes come from, for messages

    def __init__(self, folder: Path) -> None:
        """List the tensors. SteerError, naming the file and any tensor, on a bad folder."""
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}  # in safetensors' notation, such as "BF16"
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
        """A tensor, maybe a view of the mapped file: read-only, valid within this context only."""
        path = self._files[name]
        try:
            if path not in self._open:
                self._open[path] = self._stack.enter_context(safe_open(path, framework="pt"))
            tensor: Tensor = self._open[path].get_tensor(name)
            return tensor
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise SteerError(f"{path}: tensor {name} cannot be read: {error}") from None

    def pieces(self, name: str) -> Iterator[Tensor]:
        """A tensor's rows in order: in one piece, since they are only mapped."""
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
    """Whether a folder has safetensors files, valid or not."""
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
    """Describe the first wrong tensor of a refused file; the library does not always name it."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LONGEST_HEADER:
                return None
            header = parse_json(file.read(length))
        data = path.stat().st_size - 8 - length
    except (OSError, ValueError):
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
    """What is wrong with a tensor that should begin at ``end``, where the one before it ends."""
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
