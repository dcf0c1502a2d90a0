"""The shape of a model, as the rest of the engine sees it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from engine.errors import SteerError

ROLES = ("small", "large")  # names of the two models, by index


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched over a longer context.

    kind: "default" (not at all), "linear", "llama3" or "yarn".
    factor: ratio of the longer context to the original one.
    original_max_position: context length of the first training, in tokens (llama3, yarn).
    low, high: bounds on original_max_position / wavelength between which frequencies are blended:
        of llama3 low_freq_factor and high_freq_factor, of yarn beta_slow and beta_fast.
    attention_factor: multiplies cosines and sines (yarn).
    truncate: yarn rounds the blended range outward to whole dimensions.
    """

    kind: str = "default"
    factor: float = 1.0
    original_max_position: int = 0
    low: float = 1.0
    high: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class Quantisation:
    """How a checkpoint packs its linear layers; see :mod:`engine.models.quantisation`.

    method: "fp8", "gptq", "awq", or "packed" (compressed-tensors' int weights).
    bits: bits of a weight.
    group: columns that share a scale, 0 for a whole row (not fp8).
    strategy: what shares a scale: "tensor", "channel" or "block" (fp8 only).
    block: rows and columns of a block.
    scale_name: name of the scale tensors (fp8 only).
    symmetric: there are no zero points, or all are in the middle of the range.
    zero_shift: what GPTQ's first format subtracted from its zero points.
    plain: names of the linear layers that are not quantised.
    """

    method: str
    bits: int
    group: int = 0
    strategy: str = "group"
    block: tuple[int, int] = (1, 1)
    scale_name: str = ""
    symmetric: bool = True
    zero_shift: int = 0
    plain: tuple[str, ...] = ()


_LATER = ("qkv_bias", "output_bias", "mlp_bias", "qk_norm", "rope", "quantisation", "rope_factors")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of one decoder, as its ``config.json`` gives it. Sizes in elements.

    max_position: tokens of one sequence at most. A sliding window counts as such a limit: within it
        attention is complete, so results are exact.
    qkv_bias, output_bias, mlp_bias: which linear layers add a bias.
    qk_norm: queries and keys are normed head by head (Qwen3).
    tied: the head is the embedding.
    rope_factors: divisor of each rotated pair's frequency, [head_dim / 2], in GGUF files in place
        of ``rope``. Empty: no scaling.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_position: int = 32768
    rope_theta: float = 1e6
    norm_eps: float = 1e-6
    tied: bool = False
    eos_ids: tuple[int, ...] = ()
    qkv_bias: bool = True
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope: RopeScaling = RopeScaling()
    quantisation: Quantisation | None = None
    rope_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "layers", "head_dim"):
            if getattr(self, name) < 1:
                raise SteerError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise SteerError(
                f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})"
            )
        if self.head_dim % 2:
            raise SteerError(f"head_dim must be even, got {self.head_dim}")

    @property
    def query_width(self) -> int:
        """Columns of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Columns of all key heads together."""
        return self.kv_heads * self.head_dim

    @property
    def description(self) -> str:
        """The text that fingerprints hash. Later fields appear only where they are not default."""
        early = [f for f in fields(self) if f.name not in _LATER]
        late = [f for f in fields(self) if f.name in _LATER and getattr(self, f.name) != f.default]
        return (
            f"ModelConfig({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in early + late)})"
        )

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of keys and values of one token, all layers."""
        return self.layers * 2 * self.kv_width * element_bytes
