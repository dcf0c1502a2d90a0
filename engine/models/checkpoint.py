"""Checkpoints: a model on disk, opened once and handed on to all that reads it. No pickles.

A checkpoint is a Hugging Face folder (config.json and safetensors) or a GGUF file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from engine.config import ModelConfig
from engine.errors import SteerError
from engine.files import Folder
from engine.gguf.file import GgufFile, is_gguf
from engine.models.config_json import parse_config
from engine.models.gguf_sampling import sampling_settings
from engine.models.gguf_shape import model_config
from engine.models.gguf_tensors import GgufTensors
from engine.models.layout import Linear, expected_shapes, model_parts
from engine.models.leftovers import head_differs
from engine.models.shards import Shards, holds_weights
from engine.models.weight_reader import Tensors, is_plain, read_weights
from engine.text.tokenizer import Tokenizer
from kernels.ops import Weight

__all__ = ["Checkpoint", "expected_shapes", "load_config", "load_weights", "open_checkpoint"]

_CONFIG, _GENERATION = "config.json", "generation_config.json"


@dataclass(frozen=True)
class Recommendation:
    """Settings of requests that a checkpoint recommends.

    path: the file that holds them.
    settings: in the words of a generation_config.json; None if they are not to be used.
    unknown: names of settings that have no word there.
    """

    path: Path
    settings: Mapping[str, Any] | None
    unknown: tuple[str, ...] = ()


class Checkpoint(ABC):
    """A model on disk.

    Each file that says something in words, and each header of weights, is opened and read once,
    when it is first needed. Numbers are not kept: their files are mapped again for each layer
    that is loaded, and for tensors that the shape depends on, because pages that were read count as
    the process's memory until they are unmapped.

    path: the folder or file; in a message the checkpoint stands for it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    @abstractmethod
    def shape(self) -> ModelConfig:
        """The model's shape. SteerError if it cannot be read or is not supported.

        In a folder, end-of-sequence ids of generation_config.json take precedence over
        config.json's. Which layers of a quantised checkpoint are plain is read from its weights, if
        there are any; so is whether a head that should be tied differs from the embedding.
        """

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """A tokenizer of its own for each call. SteerError if its files cannot be read."""

    @abstractmethod
    def json(self, name: str) -> Mapping[str, Any]:
        """The object in a JSON file of the folder; empty without one, as for a GGUF file."""

    @abstractmethod
    def recommendation(self) -> Recommendation | None:
        """Settings of requests, from generation_config.json or GGUF keys; None without the file."""

    @abstractmethod
    def _tensors(self, config: ModelConfig) -> Tensors: ...

    def weights(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        progress: bool = False,
        device: torch.device | str = "cpu",
    ) -> dict[str, Weight]:
        """All weights by the names of :mod:`engine.models.layout`, plain ones in ``dtype``.

        Each is allocated once and filled from the mapped files, which are unmapped layer by layer:
        no more than one layer exists twice at any time.

        Args:
            config: ``shape``; its end-of-sequence ids may be others.
            dtype: dtype of weights that are not quantised; a GGUF file's are all dequantised to it.
            progress: show a bar on standard error.
            device: where weights are allocated; the host never holds all of them for another
                device.

        Raises:
            SteerError: on missing, extra, duplicate or mis-shaped tensors and unreadable files.
        """
        return read_weights(self._tensors(config), config, dtype, progress, device)


class _FolderCheckpoint(Checkpoint):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if not path.is_dir():
            what = "a file" if path.is_file() else "no such folder"
            raise SteerError(
                f"{path}: {what}; expected a Hugging Face checkpoint folder or a .gguf file"
            )
        self._folder = Folder(path)
        files = sorted(path.glob("*.gguf"))
        if files and not self._folder.has(_CONFIG):
            raise SteerError(f"{path}: a folder of GGUF files; pass one of them, as {files[0]}")

    @cached_property
    def shape(self) -> ModelConfig:
        raw = self._folder.json(_CONFIG)
        eos = self.json(_GENERATION).get("eos_token_id")
        raw = raw if eos is None else {**raw, "eos_token_id": eos}
        config = parse_config(raw, str(self.path / _CONFIG))
        if not (config.tied or config.quantisation) or not holds_weights(self.path):
            return config
        if config.tied and head_differs(self._shards):
            config = replace(config, tied=False)
        if config.quantisation is None:
            return config
        plain = tuple(name for name in _linear_layers(config) if is_plain(self._shards, name))
        return replace(config, quantisation=replace(config.quantisation, plain=plain))

    @cached_property
    def _shards(self) -> Shards:
        return Shards(self.path)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self._folder)

    def json(self, name: str) -> Mapping[str, Any]:
        return self._folder.optional_json(name)

    def recommendation(self) -> Recommendation | None:
        if not self._folder.has(_GENERATION):
            return None
        return Recommendation(self.path / _GENERATION, self.json(_GENERATION))

    def _tensors(self, config: ModelConfig) -> Tensors:
        return self._shards


class _GgufCheckpoint(Checkpoint):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = GgufFile(path)

    @cached_property
    def shape(self) -> ModelConfig:
        return model_config(self._file)

    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self._file)

    def json(self, name: str) -> Mapping[str, Any]:
        return {}

    def recommendation(self) -> Recommendation | None:
        return Recommendation(self.path, *sampling_settings(self._file))

    def _tensors(self, config: ModelConfig) -> Tensors:
        return GgufTensors(self._file, config)


def open_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint folder, or a GGUF file. SteerError, naming it, if it is neither."""
    return _GgufCheckpoint(path) if is_gguf(path) else _FolderCheckpoint(path)


def load_config(path: Path) -> ModelConfig:
    """The shape alone of a checkpoint that nothing else is read of."""
    return open_checkpoint(path).shape


def load_weights(
    path: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    progress: bool = False,
    device: torch.device | str = "cpu",
) -> dict[str, Weight]:
    """The weights alone, see :meth:`Checkpoint.weights`."""
    return open_checkpoint(path).weights(config, dtype, progress, device)


def _linear_layers(config: ModelConfig) -> Iterator[str]:
    """Names of the checkpoint's linear layers."""
    for part in model_parts(config):
        yield from (name for name, _ in part.parts) if isinstance(part, Linear) else ()
