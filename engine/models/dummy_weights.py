"""Random weights and tokens of given shapes, to measure speed without a checkpoint.

Their text means nothing: no accuracy can be measured and no calibration fitted on it.
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

from engine.config import ModelConfig, Quantisation
from engine.errors import SteerError
from engine.models.layout import Linear, fused_shapes, model_parts
from engine.text.tokenizer import Tokenizer
from kernels.ops import Fp8Weight, IntWeight, Weight

_BYTES = 256


class DummyWeights(Mapping[str, Weight]):
    """Weights by the names of the layout, each generated on the device at its look-up and not kept.

    So a GPU needs no memory for two copies of a model. A tensor depends only on the seed, its name
    and the kind of device. Matrices are normal with a deviation that keeps activations and logits
    near 1 at any width and depth, so finite in every dtype. The linear layers of a quantised model
    are packed, with the same deviation; integer codes are uniform.
    """

    def __init__(
        self, config: ModelConfig, dtype: torch.dtype, device: str | torch.device, seed: int
    ) -> None:
        self._shapes = fused_shapes(config)
        self._layers = config.layers
        self._dtype = dtype
        self._device = torch.device(device)
        self._seed = seed
        self._packing = config.quantisation
        self._packed = {
            f"{part.name}.weight"
            for part in model_parts(config)
            if isinstance(part, Linear)
            and self._packing is not None
            and not any(source in self._packing.plain for source, _ in part.parts)
        }

    def __getitem__(self, name: str) -> Weight:
        if self._packing is not None and name in self._packed:
            return self._pack(self._packing, name)
        weight = torch.empty(self._shapes[name], dtype=self._dtype, device=self._device)
        if name.endswith("norm.weight"):
            return weight.fill_(1.0)
        if name.endswith(".bias"):
            return weight.zero_()
        return weight.normal_(0.0, self._spread(name), generator=self._generator(name))

    def _spread(self, name: str) -> float:
        """Standard deviation of a matrix."""
        spread = 1 / math.sqrt(self._shapes[name][1])
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            spread /= math.sqrt(2 * self._layers)  # the residual stream adds up so many terms
        return spread

    def _generator(self, name: str) -> torch.Generator:
        key = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()[:7]
        return torch.Generator(self._device).manual_seed(int.from_bytes(key))

    def _pack(self, packing: Quantisation, name: str) -> Fp8Weight | IntWeight:
        """A linear layer in a checkpoint's packed format."""
        (rows, columns), spread = self._shapes[name], self._spread(name)
        generator = self._generator(name)
        if packing.method == "fp8":
            normal = torch.empty((rows, columns), dtype=torch.bfloat16, device=self._device)
            codes = normal.normal_(0.0, 1.0, generator=generator).to(torch.float8_e4m3fn)
            block = packing.block if packing.strategy == "block" else (1, columns)
            grid = (-(-rows // block[0]), -(-columns // block[1]))
            return Fp8Weight(codes, torch.full(grid, spread, device=self._device), block)
        width, group = columns * packing.bits // 8, packing.group or columns
        codes = torch.empty((rows, width), dtype=torch.uint8, device=self._device)
        codes.random_(0, 256, generator=generator)
        groups, levels = -(-columns // group), 1 << packing.bits
        scale = spread / math.sqrt((levels**2 - 1) / 12)  # over a uniform code's deviation
        kept = torch.full((groups, rows), scale, dtype=torch.float16, device=self._device)
        zero = None
        if not packing.symmetric:
            zero = torch.full_like(kept, levels // 2, dtype=torch.int16)
        return IntWeight(codes, kept, zero, packing.bits, group)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def dummy_tokenizer(size: int) -> Tokenizer:
    """A tokenizer of ``size`` ids: 256 for the bytes, which spell any text, then words.

    SteerError if there are fewer ids than bytes.
    """
    if size < _BYTES:
        raise SteerError(f"dummy weights need a vocabulary of {_BYTES} ids or more, got {size}")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *(f"Ġw{index}" for index in range(_BYTES, size))]
    tokenizer = HFTokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    with TemporaryDirectory() as folder:  # read back through the same code as a checkpoint's
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(str(path), pretty=False)
        return Tokenizer(path)
