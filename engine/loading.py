"""Loads a pair: two folders become two decoders that agree on their tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.config import DUMMY, EngineConfig, ModelConfig, Pair
from engine.dummy import DummyWeights, dummy_tokenizer
from engine.errors import SteerError
from engine.models.checkpoint import load_config, load_weights
from engine.models.decoder import Decoder
from engine.tokenizer import Tokenizer
from kernels.ops import Weight

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedPair:
    """Both models, small first.

    ``fingerprint`` changes with anything that gives signals another meaning: weights, shapes, the
    tokenizer, the delimiters. That of dummy weights begins with ``DUMMY``.
    """

    decoders: tuple[Decoder, Decoder]
    tokenizer: Tokenizer
    max_context: int
    fingerprint: str

    @property
    def shapes(self) -> tuple[ModelConfig, ModelConfig]:
        """Of small and large."""
        return self.decoders[0].config, self.decoders[1].config


def load_pair(pair: Pair, config: EngineConfig, dtype: torch.dtype) -> LoadedPair:
    """Read both folders. SteerError on anything that cannot be loaded, naming it."""
    dummy = config.load_format == "dummy"
    folders = None if pair.small is None or pair.large is None else (pair.small, pair.large)
    if folders:
        shapes = load_config(folders[0]), load_config(folders[1])
        pair.check_shapes(shapes)
    elif dummy:
        shapes = pair.shapes
    else:
        raise SteerError(f"pair {pair.name}: no weights; pass small=FOLDER and large=FOLDER")
    context = _context(config, shapes)
    tokenizer = (
        _shared_tokenizer(folders, shapes)
        if folders
        else dummy_tokenizer(min(shape.vocab_size for shape in shapes))
    )

    def decoder(model: int) -> Decoder:
        weights: Mapping[str, Weight]
        if folders and not dummy:
            weights = load_weights(folders[model], shapes[model], dtype)
        else:
            weights = DummyWeights(shapes[model], dtype, "cpu", seed=model)
        return Decoder(shapes[model], weights, context, config.cpu_kernels)

    decoders = decoder(0), decoder(1)
    digest = hashlib.sha256(f"{tokenizer.fingerprint}{config.delimiters}".encode())
    for each in decoders:
        digest.update(each.config.description.encode())
        for tensor in each.tensors():
            digest.update(_sample(tensor))
    name = f"{DUMMY}{pair.name}" if dummy else pair.name
    return LoadedPair(decoders, tokenizer, context, f"{name}-{digest.hexdigest()[:12]}")


def _sample(tensor: torch.Tensor, count: int = 256) -> bytes:
    """Evenly spaced elements: any training changes nearly all, and 64 GB need not be read."""
    flat = tensor.flatten()
    return flat[:: max(1, flat.numel() // count)].float().numpy().tobytes()


def _context(config: EngineConfig, shapes: tuple[ModelConfig, ModelConfig]) -> int:
    limit = min(shape.max_position for shape in shapes)
    if config.max_context > limit:
        raise SteerError(f"max_context {config.max_context} exceeds the models' {limit}")
    return config.max_context or limit


def _shared_tokenizer(
    folders: tuple[Path, Path], shapes: tuple[ModelConfig, ModelConfig]
) -> Tokenizer:
    small, large = (Tokenizer(folder) for folder in folders)
    difference = small.difference(large)
    if difference:
        raise SteerError(f"the tokenizers of {folders[0]} and {folders[1]} differ: {difference}")
    for folder, shape in zip(folders, shapes, strict=True):
        if small.size > shape.vocab_size:
            raise SteerError(
                f"{folder}: the tokenizer has {small.size} ids, the model {shape.vocab_size}"
            )
    return small
