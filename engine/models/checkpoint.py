"""Reads checkpoints: their shape, and their weights checked name by name. No pickles.

A checkpoint is a Hugging Face folder (config.json and safetensors) or a GGUF file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from engine.config import ModelConfig, Quantisation
from engine.errors import SteerError
from engine.files import read_json
from engine.gguf.file import GgufFile, opened
from engine.models.config_json import parse_config
from engine.models.gguf_shape import model_config
from engine.models.gguf_tensors import GgufTensors
from engine.models.layout import Linear, Part, Table, expected_shapes, model_parts
from engine.models.leftovers import EMBEDDING, HEAD, check_leftover, head_differs
from engine.models.packing import pack
from engine.models.quantisation import FLOATS, Wanted, wanted_tensors
from engine.models.shards import Shards, holds_weights
from engine.models.weight_memory import WeightMemory
from engine.out_of_memory import is_out_of_memory
from engine.progress import progress_bar
from kernels.ops import Fp8Weight, IntWeight, Weight, stack

__all__ = ["expected_shapes", "load_config", "load_weights"]


def load_config(source: Path | GgufFile) -> ModelConfig:
    """The model's shape. SteerError on a checkpoint that cannot be read.

    In a folder, end-of-sequence ids of generation_config.json take precedence over config.json's.
    Which layers of a quantised checkpoint are plain is read from its weights, if there are any; so
    is whether a head that should be tied differs from the embedding.
    """
    source = opened(source)
    return model_config(source) if isinstance(source, GgufFile) else _folder_config(source)


def _folder_config(folder: Path) -> ModelConfig:
    if not folder.is_dir():
        what = "a file" if folder.is_file() else "no such folder"
        raise SteerError(
            f"{folder}: {what}; expected a Hugging Face checkpoint folder or a .gguf file"
        )
    files = sorted(folder.glob("*.gguf"))
    if files and not (folder / "config.json").is_file():
        raise SteerError(f"{folder}: a folder of GGUF files; pass one of them, as {files[0]}")
    raw = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    if generation.is_file():
        eos = read_json(generation).get("eos_token_id")
        raw = raw if eos is None else {**raw, "eos_token_id": eos}
    config = parse_config(raw, str(folder / "config.json"))
    if not (config.tied or config.quantisation) or not holds_weights(folder):
        return config
    shards = Shards(folder)
    if config.tied and head_differs(shards):
        config = replace(config, tied=False)
    if config.quantisation is None:
        return config
    plain = tuple(name for name in _linear_layers(config) if _is_plain(shards, name))
    return replace(config, quantisation=replace(config.quantisation, plain=plain))


def _linear_layers(config: ModelConfig) -> Iterator[str]:
    """Names of the checkpoint's linear layers."""
    for part in model_parts(config):
        yield from (name for name, _ in part.parts) if isinstance(part, Linear) else ()


def _is_plain(shards: Shards | GgufTensors, name: str) -> bool:
    """Whether a layer is not quantised: its tensors decide, whatever config.json says."""
    return shards.dtypes.get(f"{name}.weight") in FLOATS


def load_weights(
    source: Path | GgufFile,
    config: ModelConfig,
    dtype: torch.dtype,
    progress: bool = False,
    device: torch.device | str = "cpu",
) -> dict[str, Weight]:
    """All weights by the names of :mod:`engine.models.layout`, plain ones in ``dtype``.

    Each is allocated once and filled from the mapped files, which are unmapped layer by layer: no
    more than one layer exists twice at any time.

    Args:
        source: the checkpoint.
        config: its shape.
        dtype: dtype of weights that are not quantised; a GGUF file's are all dequantised to it.
        progress: show a bar on standard error.
        device: where weights are allocated; the host never holds all of them for another device.

    Raises:
        SteerError: on missing, extra, duplicate or mis-shaped tensors and unreadable files.
    """
    source = opened(source)
    shards = GgufTensors(source, config) if isinstance(source, GgufFile) else Shards(source)
    loader = _Loader(shards, config, dtype, torch.device(device))
    loader.check()
    weights: dict[str, Weight] = {}
    label = f"loading {shards.folder.name}"
    with progress_bar(config.layers + 3 - config.tied, progress, label, "part") as bar:
        for _, parts in groupby(model_parts(config), _layer_of):
            with shards:
                for part in parts:
                    weights.update(loader.load(part))
            bar.update()
    return weights


def _layer_of(part: Part) -> str:
    return ".".join(part.name.split(".")[:3])


class _Loader:
    """Fills the parts of one model from its shards."""

    def __init__(
        self,
        shards: Shards | GgufTensors,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._shards = shards
        self._config = config
        self._dtype = dtype
        self._device = device
        self._memory = WeightMemory(device)

    def check(self) -> None:
        """SteerError unless the shards hold exactly what the model needs."""
        shards = self._shards
        expected = dict[str, Wanted]()
        for part in model_parts(self._config):
            expected.update(self._wanted(part))
        for name, shape in shards.shapes.items():
            if name in expected:
                self._check_tensor(name, shape, expected[name])
            else:
                check_leftover(shards, name, expected, self._config.tied)
        missing = [n for n, w in expected.items() if not w.optional and n not in shards.shapes]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise SteerError(f"{shards.folder}: tensor {missing[0]}{more} is missing")

    def _check_tensor(self, name: str, shape: tuple[int, ...], wanted: Wanted) -> None:
        where = f"{self._shards.path(name)}: tensor {name}"
        if shape not in wanted.shapes:
            right = " or ".join(map(str, wanted.shapes))
            raise SteerError(f"{where} has shape {shape}, {self._shards.source} asks for {right}")
        if self._shards.dtypes[name] not in wanted.dtypes:
            right = " or ".join(wanted.dtypes)
            raise SteerError(f"{where} is {self._shards.dtypes[name]}; expected {right}")

    def _source(self, name: str) -> str:
        """The checkpoint's name of a table; of two that are tied it may hold only the head."""
        only_head = self._config.tied and name == EMBEDDING and name not in self._shards.shapes
        return HEAD if only_head and HEAD in self._shards.shapes else name

    def _wanted(self, part: Part) -> Iterator[tuple[str, Wanted]]:
        """Names, shapes and dtypes of a part's tensors."""
        if isinstance(part, Table):
            yield self._source(part.name), Wanted((part.shape,), FLOATS)
            return
        for name, rows in part.parts:
            for suffix, wanted in self._weight_tensors(name, rows, part.columns).items():
                yield f"{name}.{suffix}", wanted
            if part.biased:
                yield f"{name}.bias", Wanted(((rows,),), FLOATS)

    def _weight_tensors(self, name: str, rows: int, columns: int) -> dict[str, Wanted]:
        """Tensors of one layer by suffix; checkpoints leave some layers unquantised."""
        packing = self._packing(name)
        if packing is None:
            return {"weight": Wanted(((rows, columns),), FLOATS)}
        try:
            return wanted_tensors(packing, rows, columns)
        except SteerError as error:
            raise SteerError(f"{self._shards.folder}: layer {name}: {error}") from None

    def _packing(self, name: str) -> Quantisation | None:
        return None if _is_plain(self._shards, name) else self._config.quantisation

    def load(self, part: Part) -> Iterator[tuple[str, Weight]]:
        """The part's weights by the model's names."""
        if isinstance(part, Table):
            yield part.name, self._stacked([self._source(part.name)], part.shape)
            return
        names = [name for name, _ in part.parts]
        if any(self._packing(name) for name in names):
            weights = [self._weight(name, rows, part.columns) for name, rows in part.parts]
            whole: Weight = stack(weights).to(self._device)
        else:
            whole = self._stacked([f"{n}.weight" for n in names], (part.rows, part.columns))
        yield f"{part.name}.weight", whole
        if part.biased:
            yield f"{part.name}.bias", self._stacked([f"{n}.bias" for n in names], (part.rows,))

    def _weight(self, name: str, rows: int, columns: int) -> Tensor | Fp8Weight | IntWeight:
        """A layer of the checkpoint; a packed one stays packed, and on the host."""
        packing = self._packing(name)
        if packing is None:
            return self._stacked([f"{name}.weight"], (rows, columns))
        suffixes = self._weight_tensors(name, rows, columns)
        names = {s: f"{name}.{s}" for s in suffixes if f"{name}.{s}" in self._shards.shapes}
        try:
            tensors = {suffix: self._shards.read(full) for suffix, full in names.items()}
            return pack(packing, tensors, rows, columns)
        except SteerError as error:
            raise SteerError(f"{self._shards.folder}: layer {name}: {error}") from None

    def _stacked(self, names: list[str], shape: tuple[int, ...]) -> Tensor:
        try:
            whole = self._memory.empty(shape, self._dtype)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = math.prod(shape) * self._dtype.itemsize / 2**30
            raise SteerError(f"no memory for {names[0]} ({size:.1f} GiB)") from None
        first = 0
        for name in names:
            for piece in self._shards.pieces(name):
                whole[first : first + len(piece)].copy_(piece)
                first += len(piece)
        return whole
