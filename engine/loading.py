"""Loads a pair: two folders become two decoders that agree on their tokens."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.config import EngineConfig, ModelConfig, Pair
from engine.errors import SteerError
from engine.models.checkpoint import load_config, load_weights
from engine.models.decoder import Decoder
from engine.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedPair:
    """Both models, small first.

    ``fingerprint`` changes with anything that gives signals another meaning: weights, shapes, the
    tokenizer, the delimiters.
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
    if pair.small is None or pair.large is None:
        raise SteerError(f"pair {pair.name}: no weights; pass small=FOLDER and large=FOLDER")
    shapes = load_config(pair.small), load_config(pair.large)
    pair.check_shapes(shapes)
    context = _context(config, shapes)
    tokenizer = _shared_tokenizer((pair.small, pair.large), shapes)
    small, large = (
        Decoder(shape, load_weights(folder, shape, dtype), context, config.cpu_kernels)
        for folder, shape in zip((pair.small, pair.large), shapes, strict=True)
    )
    digest = hashlib.sha256(f"{tokenizer.fingerprint}{config.delimiters}".encode())
    for decoder in (small, large):
        digest.update(repr(decoder.config).encode())
        for tensor in decoder.tensors():
            digest.update(_sample(tensor))
    return LoadedPair((small, large), tokenizer, context, f"{pair.name}-{digest.hexdigest()[:12]}")


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
    small, large = (Tokenizer(folder / "tokenizer.json") for folder in folders)
    difference = small.difference(large)
    if difference:
        raise SteerError(f"the tokenizers of {folders[0]} and {folders[1]} differ: {difference}")
    for folder, shape in zip(folders, shapes, strict=True):
        if small.size > shape.vocab_size:
            raise SteerError(
                f"{folder}: the tokenizer has {small.size} ids, the model {shape.vocab_size}"
            )
    return small
