"""Loads a pair: two checkpoints become two decoders that agree on their tokens."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from engine.assembly.end_ids import with_end_ids
from engine.assembly.generation_defaults import default_params
from engine.config import DUMMY, EngineConfig, ModelConfig
from engine.config.pairs import Pair
from engine.device.devices import Backends, Devices
from engine.errors import SteerError
from engine.models.checkpoint import Checkpoint, open_checkpoint
from engine.models.decoder import Decoder
from engine.models.dummy_weights import DummyWeights, dummy_tokenizer
from engine.params import SamplingParams
from engine.text.special_tokens import check_delimiters
from engine.text.tokenizer import Tokenizer
from kernels.ops import Weight

Checkpoints = tuple[Checkpoint, Checkpoint]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedPair:
    """Both models, small first.

    tokenizer: the small model's.
    max_context: tokens of one sequence, prompt included.
    fingerprint: changes with all that changes the meaning of signals: weights, shapes, the
        tokenizer, the delimiters. That of dummy weights begins with ``DUMMY``.
    default_params: the large checkpoint's recommendation, or else the small one's.
    large_tokenizer: set if it differs from the small model's.
    """

    decoders: tuple[Decoder, Decoder]
    tokenizer: Tokenizer
    max_context: int
    fingerprint: str
    default_params: SamplingParams
    large_tokenizer: Tokenizer | None = None

    @property
    def tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        """Tokenizers of small and large; the same object if they agree."""
        return self.tokenizer, self.large_tokenizer or self.tokenizer

    @property
    def shapes(self) -> tuple[ModelConfig, ModelConfig]:
        """Shapes of small and large."""
        return self.decoders[0].config, self.decoders[1].config


def load_pair(
    pair: Pair,
    config: EngineConfig,
    dtype: torch.dtype,
    devices: Devices,
    backends: Backends,
    check: Callable[[tuple[ModelConfig, ModelConfig]], None] = lambda shapes: None,
    progress: bool = False,
) -> LoadedPair:
    """Read both checkpoints. SteerError on anything that cannot be loaded, naming it.

    ``backends``: what computes on each of ``devices``. ``check`` may refuse the shapes before any
    weight is read; ``progress`` shows a bar.
    """
    dummy = config.load_format == "dummy"
    checkpoints = _opened(pair)
    shapes = _shapes(pair, checkpoints, dummy)
    check(shapes)
    context = _context(config, shapes)
    tokenizer, large = (
        _tokenizers(checkpoints, shapes, config.retokenize)
        if checkpoints
        else (dummy_tokenizer(min(shape.vocab_size for shape in shapes)), None)
    )
    if checkpoints:
        shapes = with_end_ids(checkpoints, shapes, (tokenizer, large or tokenizer))

    check_delimiters(config.delimiters, tokenizer, *([large] if large else []))

    def decoder(model: int) -> Decoder:
        weights: Mapping[str, Weight]
        if checkpoints and not dummy:
            read = checkpoints[model].weights
            weights = read(shapes[model], dtype, progress, devices[model])
        else:
            weights = DummyWeights(shapes[model], dtype, devices[model], seed=model)
        return Decoder(shapes[model], weights, context, backends[model], config.cpu_kernels)

    begin = time.monotonic()
    decoders = decoder(0), decoder(1)
    size = sum(each.bytes for each in decoders)
    seconds = time.monotonic() - begin
    _log.info("pair %s: %.2f GiB of weights in %.1f s", pair.name, size / 2**30, seconds)
    digest = _digest(decoders, tokenizer, large, config.delimiters)
    name = f"{DUMMY}{pair.name}" if dummy else pair.name
    params = default_params(*reversed(checkpoints)) if checkpoints else SamplingParams()
    return LoadedPair(decoders, tokenizer, context, f"{name}-{digest}", params, large)


def _opened(pair: Pair) -> Checkpoints | None:
    if pair.small is None or pair.large is None:
        return None
    return open_checkpoint(pair.small), open_checkpoint(pair.large)


def _shapes(
    pair: Pair, checkpoints: Checkpoints | None, dummy: bool
) -> tuple[ModelConfig, ModelConfig]:
    if checkpoints:
        shapes = checkpoints[0].shape, checkpoints[1].shape
        pair.check_shapes(shapes)
        return shapes
    if dummy:
        return pair.shapes
    raise SteerError(f"pair {pair.name}: no weights; pass small=FOLDER and large=FOLDER")


def _digest(
    decoders: tuple[Decoder, Decoder],
    tokenizer: Tokenizer,
    large: Tokenizer | None,
    delimiters: tuple[str, ...],
) -> str:
    """A short hash of all that signals depend on."""
    digest = hashlib.sha256(f"{tokenizer.fingerprint}{delimiters}".encode())
    if large:
        digest.update(large.fingerprint.encode())
    for each in decoders:
        digest.update(each.config.description.encode())
        for tensor in each.tensors():
            digest.update(_sample(tensor))
    return digest.hexdigest()[:12]


def _sample(tensor: torch.Tensor, count: int = 256) -> bytes:
    """Evenly spaced elements: training changes nearly all, and large weights are read quickly."""
    flat = tensor.flatten()
    return flat[:: max(1, flat.numel() // count)].float().cpu().numpy().tobytes()


def _context(config: EngineConfig, shapes: tuple[ModelConfig, ModelConfig]) -> int:
    limit = min(shape.max_position for shape in shapes)
    if config.max_context > limit:
        raise SteerError(f"max_context {config.max_context} exceeds the models' {limit}")
    return config.max_context or limit


def _tokenizers(
    checkpoints: Checkpoints, shapes: tuple[ModelConfig, ModelConfig], retokenize: bool
) -> tuple[Tokenizer, Tokenizer | None]:
    """The tokenizer that both models share and None, or the two models' own.

    SteerError if they differ without ``retokenize``, or are larger than a model.
    """
    small, large = checkpoints[0].tokenizer(), checkpoints[1].tokenizer()
    difference = small.difference(large)
    if difference and not retokenize:
        raise SteerError(
            f"the tokenizers of {checkpoints[0]} and {checkpoints[1]} differ: {difference}; "
            "EngineConfig(retokenize=True), steer generate --retokenize, lets text cross"
        )
    for checkpoint, shape, used in zip(
        checkpoints, shapes, (small, large if difference else small), strict=True
    ):
        _limit(used, shape.vocab_size, checkpoint)
    if difference:
        return small, large
    small.chat_templates = large.chat_templates or small.chat_templates
    return small, None


def _limit(tokenizer: Tokenizer, rows: int, checkpoint: Checkpoint) -> None:
    """Leave out added tokens beyond a model's rows; SteerError if the tokenizer is another's."""
    size = tokenizer.size
    beyond = tokenizer.limit(rows)
    if beyond is None:
        raise SteerError(f"{checkpoint}: the tokenizer has {size} ids, the model {rows}")
    for token, index in beyond.items():
        _log.warning(
            "%s: the model has %d rows, so %r (id %d) is never written, and prompts that hold it "
            "are refused",
            *(checkpoint, rows, token, index),
        )
