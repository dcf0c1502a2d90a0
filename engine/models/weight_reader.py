"""Reads the weights of a checkpoint, checked name by name, part by part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

from engine.config import ModelConfig, Quantisation
from engine.errors import SteerError
from engine.models.gguf_tensors import GgufTensors
from engine.models.layout import Part, Table, model_parts
from engine.models.leftovers import EMBEDDING, HEAD, check_leftover
from engine.models.packing import pack
from engine.models.quantisation import FLOATS, Wanted, wanted_tensors
from engine.models.shards import Shards
from engine.models.weight_memory import WeightMemory
from engine.out_of_memory import is_out_of_memory
from engine.progress import progress_bar
from kernels.ops import Fp8Weight, IntWeight, Weight, stack

Tensors = Shards | GgufTensors


def read_weights(
    tensors: Tensors,
    config: ModelConfig,
    dtype: torch.dtype,
    progress: bool = False,
    device: torch.device | str = "cpu",
) -> dict[str, Weight]:
    """All weights; arguments and errors are those of :meth:`Checkpoint.weights`."""
    loader = _Loader(tensors, config, dtype, torch.device(device))
    loader.check()
    weights: dict[str, Weight] = {}
    label = f"loading {tensors.folder.name}"
    with progress_bar(config.layers + 3 - config.tied, progress, label, "part") as bar:
        for _, parts in groupby(model_parts(config), _layer_of):
            with tensors:
                for part in parts:
                    weights.update(loader.load(part))
            bar.update()
    return weights


def is_plain(tensors: Tensors, name: str) -> bool:
    """Whether a layer is not quantised: its tensors decide, whatever config.json says."""
    return tensors.dtypes.get(f"{name}.weight") in FLOATS


def _layer_of(part: Part) -> str:
    return ".".join(part.name.split(".")[:3])


class _Loader:
    """Fills the parts of one model from its tensors."""

    def __init__(
        self, tensors: Tensors, config: ModelConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._tensors = tensors
        self._config = config
        self._dtype = dtype
        self._device = device
        self._memory = WeightMemory(device)

    def check(self) -> None:
        """SteerError unless the checkpoint holds exactly what the model needs."""
        tensors = self._tensors
        expected = dict[str, Wanted]()
        for part in model_parts(self._config):
            expected.update(self._wanted(part))
        for name, shape in tensors.shapes.items():
            if name in expected:
                self._check_tensor(name, shape, expected[name])
            else:
                check_leftover(tensors, name, expected, self._config.tied)
        missing = [n for n, w in expected.items() if not w.optional and n not in tensors.shapes]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise SteerError(f"{tensors.folder}: tensor {missing[0]}{more} is missing")

    def _check_tensor(self, name: str, shape: tuple[int, ...], wanted: Wanted) -> None:
        where = f"{self._tensors.path(name)}: tensor {name}"
        if shape not in wanted.shapes:
            right = " or ".join(map(str, wanted.shapes))
            raise SteerError(f"{where} has shape {shape}, {self._tensors.source} asks for {right}")
        if self._tensors.dtypes[name] not in wanted.dtypes:
            right = " or ".join(wanted.dtypes)
            raise SteerError(f"{where} is {self._tensors.dtypes[name]}; expected {right}")

    def _source(self, name: str) -> str:
        """The checkpoint's name of a table; of two that are tied it may hold only the head."""
        only_head = self._config.tied and name == EMBEDDING and name not in self._tensors.shapes
        return HEAD if only_head and HEAD in self._tensors.shapes else name

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
            raise SteerError(f"{self._tensors.folder}: layer {name}: {error}") from None

    def _packing(self, name: str) -> Quantisation | None:
        return None if is_plain(self._tensors, name) else self._config.quantisation

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
        names = {s: f"{name}.{s}" for s in suffixes if f"{name}.{s}" in self._tensors.shapes}
        try:
            tensors = {suffix: self._tensors.read(full) for suffix, full in names.items()}
            return pack(packing, tensors, rows, columns)
        except SteerError as error:
            raise SteerError(f"{self._tensors.folder}: layer {name}: {error}") from None

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
            for piece in self._tensors.pieces(name):
                whole[first : first + len(piece)].copy_(piece)
                first += len(piece)
        return whole
