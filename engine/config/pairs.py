"""Pairs of a small and a large model by name, and where their weights are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.config import TINY, ModelConfig
from engine.config.expert_mixtures import refuse_mixtures
from engine.config.named_models import NAMED_MODELS
from engine.errors import SteerError
from engine.files import path_of

CUSTOM = "custom"
NAMED_PAIRS: tuple[str, ...] = (
    "tiny",
    CUSTOM,  # any two checkpoints
    "qwen-0.5b/qwen-1.5b",
    "qwen-0.5b/qwen-7b",
    "qwen-1.5b/qwen-7b",
    "qwen-1.5b/qwen-14b",
    "qwen-1.5b/qwen-32b",
    "qwen-3b/qwen-32b",
    "qwen-7b/qwen-72b",
    "qwen-coder-0.5b/qwen-coder-1.5b",
    "qwen3-0.6b/qwen3-8b",
    "qwen3-0.6b/qwen3-32b",
    "qwen3-1.7b/qwen3-32b",
    "llama-1b/llama-8b",
    "llama-1b/llama-70b",
)
# Fields that a checkpoint must share with the named shape. Not ``tied``: a file may repeat a tied
# head.
_COMPARED = ("layers", "hidden_size", "heads", "kv_heads", "head_dim", "intermediate_size")


@dataclass(frozen=True)
class Pair:
    """A small and a large model by name.

    small, large: a folder or GGUF file with the weights; None for a pair of shapes only.
    made_up: shapes of small and large that no checkpoint has, for dummy weights.
    """

    name: str
    small: Path | None = None
    large: Path | None = None
    made_up: tuple[ModelConfig, ModelConfig] | None = None

    @classmethod
    def named(
        cls, name: str, small: str | Path | None = None, large: str | Path | None = None
    ) -> Pair:
        """A named pair; ``small`` and ``large`` are folders or GGUF files (tiny has its own)."""
        if not isinstance(name, str):
            raise SteerError(f"a pair must be a name or a Pair, got {name!r}")
        refuse_mixtures(name)
        if name not in NAMED_PAIRS:
            raise SteerError(f"unknown pair {name!r}; known: {', '.join(NAMED_PAIRS)}")
        if name == "tiny":
            small, large = small or TINY / "small", large or TINY / "large"
        if (small is None) != (large is None):
            missing = "small" if small is None else "large"
            raise SteerError(
                f"pair {name}: the {missing} model is missing: pass its folder or GGUF file"
            )
        if name == CUSTOM and small is None:
            raise SteerError("pair custom: pass both models, each a folder or a GGUF file")
        where = "a model's folder or GGUF file"
        return cls(
            name, path_of(small, where) if small else None, path_of(large, where) if large else None
        )

    @property
    def shapes(self) -> tuple[ModelConfig, ModelConfig]:
        """The shapes of small and large; SteerError for a pair without named ones (tiny)."""
        if self.made_up:
            return self.made_up
        small, slash, large = self.name.partition("/")
        if not slash:
            raise SteerError(f"pair {self.name!r} has no named shapes: it needs its weights")
        return NAMED_MODELS[small], NAMED_MODELS[large]

    def check_shapes(self, shapes: tuple[ModelConfig, ModelConfig]) -> None:
        """SteerError if the checkpoints' ``shapes`` are not those of the pair's name."""
        if "/" not in self.name:
            return
        for name, shape, named in zip(self.name.split("/"), shapes, self.shapes, strict=True):
            for field in _COMPARED:
                if getattr(shape, field) != getattr(named, field):
                    raise SteerError(
                        f"this is not {name}: {field} is {getattr(shape, field)}, expected "
                        f"{getattr(named, field)}; use the pair custom for other models"
                    )
