"""The shape of a model: what the rest of the engine knows of it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from engine.errors import SteerError

ROLES = ("small", "large")  # of the two models, by index


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched over a longer context.

    kind: "default" (not at all), "linear", "llama3" or "yarn".
    factor: how much longer.
    original_max_position: tokens that the model was first trained on (llama3, yarn).
    low, high: llama3's bounds on original_max_position / wavelength, between which it is blended;
        yarn's likewise (beta_slow, beta_fast).
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
    bits: of a weight.
    group: columns that share a scale, 0 for all of a row (not fp8).
    strategy: of fp8: "tensor", "channel" or "block", what shares a scale.
    block: rows and columns of a block.
    scale_name: of fp8: how its scales are called.
    symmetric: there are no zero points, or all are in the middle.
    zero_shift: what GPTQ's first format took from its zero points.
    plain: linear layers of the checkpoint that it did not quantise, by name.
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


_LATER = (
    "qkv_bias", "output_bias", "mlp_bias", "qk_norm", "rope", "quantisation", "rope_factors",
)  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """The shape of one decoder, as its ``config.json`` gives it. Sizes in elements.

    max_position: tokens of one sequence at most. A sliding window counts as such a limit: within it
        attention is complete, so what is computed is exact.
    qkv_bias, output_bias, mlp_bias: which linear layers add a bias.
    qk_norm: queries and keys are normed head by head (Qwen3).
    tied: the head is the embedding.
    rope_factors: what each rotated pair's frequency is divided by, [head_dim / 2]; GGUF files say
        so what others say by ``rope``. Empty: nothing.
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
        """What fingerprints are made of. Fields that came later show where they are not default."""
        early = [f for f in fields(self) if f.name not in _LATER]
        late = [f for f in fields(self) if f.name in _LATER and getattr(self, f.name) != f.default]
        return (
            f"ModelConfig({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in early + late)})"
        )

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of keys and values of one token, all layers."""
        return self.layers * 2 * self.kv_width * element_bytes
