"""Shapes, pairs and settings. Every default of the engine lives here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import SteerError

ARCHITECTURES = ("Qwen2ForCausalLM",)
ROLES = ("small", "large")
TINY = Path(__file__).parent / "tiny"


@dataclass(frozen=True)
class ModelConfig:
    """The shape of one decoder, as its ``config.json`` gives it. Sizes in elements."""

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

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of keys and values of one token, all layers."""
        return self.layers * 2 * self.kv_width * element_bytes

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """Read a Hugging Face ``config.json``. Raises SteerError on what is not supported."""
        architecture = (raw.get("architectures") or ["none named"])[0]
        if architecture not in ARCHITECTURES:
            raise SteerError(
                f"{where}: architecture {architecture} is not supported; "
                f"supported: {', '.join(ARCHITECTURES)}"
            )
        try:
            return cls._from_qwen2(raw, where)
        except KeyError as missing:
            raise SteerError(f"{where}: {missing} is missing") from None

    @classmethod
    def _from_qwen2(cls, raw: Mapping[str, Any], where: str) -> ModelConfig:
        rope = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or {})
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise SteerError(f"{where}: rope type {kind!r} is not supported; supported: default")
        if raw.get("use_sliding_window"):
            raise SteerError(f"{where}: sliding windows are not supported; set it to false")
        if raw.get("hidden_act", "silu") != "silu":
            raise SteerError(f"{where}: hidden_act {raw['hidden_act']!r} is not supported: silu is")
        eos = raw.get("eos_token_id")
        heads = raw["num_attention_heads"]
        return cls(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            layers=raw["num_hidden_layers"],
            heads=heads,
            kv_heads=raw.get("num_key_value_heads", heads),
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            max_position=raw.get("max_position_embeddings", 32768),
            rope_theta=float(raw.get("rope_theta") or rope.get("rope_theta") or 10000.0),
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            tied=raw.get("tie_word_embeddings", False),
            eos_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        )


def _qwen25(
    hidden: int, layers: int, heads: int, kv_heads: int, ff: int, vocab: int, tied: bool = False
) -> ModelConfig:
    return ModelConfig(vocab, hidden, ff, layers, heads, kv_heads, hidden // heads, tied=tied)


# Shapes of published checkpoints, to price what is not on disk. With weights on disk, their own
# config.json counts.
NAMED_MODELS: dict[str, ModelConfig] = {
    "qwen-0.5b": _qwen25(896, 24, 14, 2, 4864, 151936, tied=True),
    "qwen-1.5b": _qwen25(1536, 28, 12, 2, 8960, 151936, tied=True),
    "qwen-3b": _qwen25(2048, 36, 16, 2, 11008, 151936, tied=True),
    "qwen-7b": _qwen25(3584, 28, 28, 4, 18944, 152064),
    "qwen-14b": _qwen25(5120, 48, 40, 8, 13824, 152064),
    "qwen-32b": _qwen25(5120, 64, 40, 8, 27648, 152064),
    "qwen-72b": _qwen25(8192, 80, 64, 8, 29568, 152064),
}
NAMED_PAIRS: tuple[str, ...] = (
    "tiny",
    "qwen-0.5b/qwen-7b",
    "qwen-1.5b/qwen-7b",
    "qwen-1.5b/qwen-14b",
    "qwen-1.5b/qwen-32b",
    "qwen-3b/qwen-32b",
    "qwen-7b/qwen-72b",
)


@dataclass(frozen=True)
class Pair:
    """A small and a large model by name, and where their weights are, if anywhere."""

    name: str
    small: Path | None = None
    large: Path | None = None

    @classmethod
    def named(
        cls, name: str, small: str | Path | None = None, large: str | Path | None = None
    ) -> Pair:
        """A named pair; ``small`` and ``large`` are folders of weights (tiny has its own)."""
        if name not in NAMED_PAIRS:
            raise SteerError(f"unknown pair {name!r}; known: {', '.join(NAMED_PAIRS)}")
        if name == "tiny":
            small, large = small or TINY / "small", large or TINY / "large"
        if (small is None) != (large is None):
            missing = "small" if small is None else "large"
            raise SteerError(f"pair {name}: the folder of the {missing} model is missing")
        return cls(name, Path(small) if small else None, Path(large) if large else None)

    @property
    def shapes(self) -> tuple[ModelConfig, ModelConfig]:
        """The named shapes of small and large; SteerError for a pair without (tiny)."""
        small, slash, large = self.name.partition("/")
        if not slash:
            raise SteerError(f"pair {self.name!r} has no named shapes: it comes with its weights")
        return NAMED_MODELS[small], NAMED_MODELS[large]


@dataclass(frozen=True)
class EngineConfig:
    """Settings of one engine.

    block_tokens: tokens of a KV block.
    arena_tokens: KV room in tokens of the large model; the small one may borrow all of it.
    max_context: tokens of one sequence, prompt included; 0 takes the smaller model's limit.
    max_sequences: running at once, the rest waits.
    max_waiting: waiting at once, the rest is refused; 0 sets no limit.
    max_tick_tokens: rows of one forward pass; long prefills are cut to fit.
    delimiters: what ends a step.
    prefix_cache: keep the KV of full settled blocks and share it among requests with the same
        beginning, until the room is needed.
    check_every: ticks between proofs of the core's books; 0 checks only when idle.
    """

    block_tokens: int = 16
    arena_tokens: int = 32768
    max_context: int = 0
    max_sequences: int = 256
    max_waiting: int = 8192
    max_tick_tokens: int = 2048
    delimiters: tuple[str, ...] = ("\n\n",)
    prefix_cache: bool = True
    check_every: int = 0

    def __post_init__(self) -> None:
        for name in ("block_tokens", "arena_tokens", "max_sequences"):
            if getattr(self, name) < 1:
                raise SteerError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_context", "max_waiting", "check_every"):
            if getattr(self, name) < 0:
                raise SteerError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.max_tick_tokens <= self.max_sequences:
            raise SteerError(
                f"max_tick_tokens ({self.max_tick_tokens}) must be greater than "
                f"max_sequences ({self.max_sequences})"
            )
        if not self.delimiters or not all(self.delimiters):
            raise SteerError("delimiters must be one or more strings that are not empty")
