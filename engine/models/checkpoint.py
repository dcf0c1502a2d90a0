"""Reads Hugging Face folders: config.json and safetensors, checked name by name. No pickles."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from engine.config import ModelConfig
from engine.errors import SteerError
from engine.files import read_json
from engine.models.config_json import parse_config
from engine.models.layout import Part, Table, expected_shapes, model_parts
from engine.models.shards import Shards
from kernels.ops import Weight

__all__ = ["expected_shapes", "load_config", "load_weights"]

_FLOATS = ("F32", "BF16", "F16")
# Written by some exporters, and of no use here.
_IGNORED = re.compile(r".*\.(rotary_emb\.inv_freq|attn\.masked_bias)")


def load_config(folder: Path) -> ModelConfig:
    """The model's shape; end-of-sequence ids of generation_config.json win over config.json's."""
    if not folder.is_dir():
        raise SteerError(f"{folder}: no such folder; expected a Hugging Face checkpoint folder")
    raw = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    if generation.is_file():
        eos = read_json(generation).get("eos_token_id")
        raw = raw if eos is None else {**raw, "eos_token_id": eos}
    return parse_config(raw, str(folder / "config.json"))


def load_weights(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    progress: bool = False,
    device: torch.device | str = "cpu",
) -> dict[str, Weight]:
    """All weights by the names of :mod:`engine.models.layout`, plain ones in ``dtype``.

    Each is allocated once and filled from the mapped files, which are unmapped layer by layer: at
    no time are there two copies of more than a layer.

    Args:
        folder: of the checkpoint.
        config: its shape.
        dtype: of what is not quantised.
        progress: show a bar on standard error.
        device: to allocate them on; what comes from a file is never whole on the host.

    Raises:
        SteerError: on missing, extra, doubled or mis-shaped tensors and unreadable files.
    """
    shards = Shards(folder)
    loader = _Loader(shards, config, dtype, torch.device(device))
    loader.check()
    weights: dict[str, Weight] = {}
    label = f"loading {folder.name}"
    with tqdm(total=config.layers, desc=label, unit="layer", disable=not progress) as bar:
        for _, parts in groupby(model_parts(config), _layer_of):
            with shards:
                for part in parts:
                    weights.update(loader.load(part))
            bar.update(min(1, config.layers - bar.n))
    return weights


def _layer_of(part: Part) -> str:
    return ".".join(part.name.split(".")[:3])


class _Loader:
    """Fills the parts of one model from its shards."""

    def __init__(
        self, shards: Shards, config: ModelConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._shards = shards
        self._config = config
        self._dtype = dtype
        self._device = device

    def check(self) -> None:
        """SteerError unless the shards hold exactly what the model needs."""
        shards = self._shards
        expected = dict[str, tuple[tuple[int, ...], tuple[str, ...]]]()
        for part in model_parts(self._config):
            expected.update(self._wanted(part))
        for name, shape in shards.shapes.items():
            if name not in expected:
                if not self._unused(name):
                    raise SteerError(f"{shards.path(name)}: unexpected tensor {name}")
                continue
            wanted, dtypes = expected[name]
            if shape != wanted:
                raise SteerError(
                    f"{shards.path(name)}: tensor {name} has shape {shape}, "
                    f"config.json asks for {wanted}"
                )
            if shards.dtypes[name] not in dtypes:
                raise SteerError(
                    f"{shards.path(name)}: tensor {name} is {shards.dtypes[name]}; expected "
                    f"{' or '.join(dtypes)}"
                )
        missing = [name for name in expected if name not in shards.shapes]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise SteerError(f"{shards.folder}: tensor {missing[0]}{more} is missing")

    def _unused(self, name: str) -> bool:
        """A tied head is written out by some exporters: the embedding counts."""
        return (self._config.tied and name == "lm_head.weight") or bool(_IGNORED.fullmatch(name))

    def _wanted(self, part: Part) -> Iterator[tuple[str, tuple[tuple[int, ...], tuple[str, ...]]]]:
        """Names, shapes and dtypes of the tensors that make a part."""
        if isinstance(part, Table):
            yield part.name, (part.shape, _FLOATS)
            return
        for name, rows in part.parts:
            yield f"{name}.weight", ((rows, part.columns), _FLOATS)
            if part.biased:
                yield f"{name}.bias", ((rows,), _FLOATS)

    def load(self, part: Part) -> Iterator[tuple[str, Weight]]:
        """The part's weights by the model's names."""
        if isinstance(part, Table):
            yield part.name, self._stacked([part.name], part.shape)
            return
        names = [name for name, _ in part.parts]
        weight = self._stacked([f"{n}.weight" for n in names], (part.rows, part.columns))
        yield f"{part.name}.weight", weight
        if part.biased:
            yield f"{part.name}.bias", self._stacked([f"{n}.bias" for n in names], (part.rows,))

    def _stacked(self, names: list[str], shape: tuple[int, ...]) -> Tensor:
        try:
            whole = torch.empty(shape, dtype=self._dtype, device=self._device)
        except (RuntimeError, MemoryError):
            size = math.prod(shape) * self._dtype.itemsize / 2**30
            raise SteerError(f"no memory for {names[0]} ({size:.1f} GiB)") from None
        first = 0
        for name in names:
            tensor = self._shards.read(name)
            whole[first : first + len(tensor)].copy_(tensor)
            first += len(tensor)
        return whole
