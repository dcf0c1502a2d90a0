"""Made-up weights and tokens of given shapes: for measuring speed where no checkpoint is at hand.

They say nothing about text. What is written by them is never an accuracy, and no calibration can
be fitted on their signals.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from engine.config import ModelConfig
from engine.errors import SteerError
from engine.models.layout import fused_shapes
from engine.tokenizer import Tokenizer

_BYTES = 256


class DummyWeights(Mapping[str, Tensor]):
    """Tensors by the names of the layout, each made on the device when asked for and not kept.

    So a card needs no room for two copies of a model. A tensor depends on the seed, its name and
    the kind of device alone. Matrices are normal with a deviation that keeps activations and logits
    near 1 at any width and depth: finite in every dtype.
    """

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, device: str | torch.device, seed: int
    ) -> None:
        self._shapes = fused_shapes(config)
        self._layers = config.layers
        self._dtype = dtype
        self._device = torch.device(device)
        self._seed = seed

    def __getitem__(self, name: str) -> Tensor:
        made = torch.empty(self._shapes[name], dtype=self._dtype, device=self._device)
        if name.endswith("norm.weight"):
            return made.fill_(1.0)
        if name.endswith(".bias"):
            return made.zero_()
        spread = 1 / math.sqrt(made.shape[1])
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            spread /= math.sqrt(2 * self._layers)  # what the residual stream sums up
        key = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()[:7]
        generator = torch.Generator(self._device).manual_seed(int.from_bytes(key))
        return made.normal_(0.0, spread, generator=generator)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def dummy_tokenizer(size: int) -> Tokenizer:
    """A tokenizer of ``size`` ids: 256 for the bytes, which write any text, and words behind them.

    SteerError if there are fewer ids than bytes.
    """
    if size < _BYTES:
        raise SteerError(f"dummy weights need a vocabulary of {_BYTES} ids or more, got {size}")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(f"Ġw{index}" for index in range(_BYTES, size))]
    made = HFTokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    with TemporaryDirectory() as folder:  # through the same door as a checkpoint's
        path = Path(folder) / "tokenizer.json"
        made.save(str(path), pretty=False)
        return Tokenizer(path)
