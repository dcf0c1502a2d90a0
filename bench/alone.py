"""A named model by itself, dense or a mixture of experts, as a rival of a routed pair."""

from __future__ import annotations

from dataclasses import dataclass

from bench import expert_mixtures
from engine.accounting.pricing import Price, weight_bytes
from engine.config import ModelConfig
from engine.config.expert_mixtures import NAMED_MIXTURES, ExpertMixture
from engine.config.named_models import NAMED_MODELS
from engine.errors import SteerError
from engine.models.footprint import stored_bytes

NAMES = (*NAMED_MODELS, *NAMED_MIXTURES)
HELP = "comma-separated, of " + ", ".join(NAMES)


@dataclass(frozen=True)
class Alone:
    """One model. ``shape``: for a mixture that of the dense model that one row goes through."""

    name: str
    shape: ModelConfig
    mixture: ExpertMixture | None = None

    @classmethod
    def named(cls, name: str) -> Alone:
        """SteerError for a name that is none of ``NAMES``."""
        if name in NAMED_MODELS:
            return cls(name, NAMED_MODELS[name])
        if name in NAMED_MIXTURES:
            return cls(name, NAMED_MIXTURES[name].row_shape, NAMED_MIXTURES[name])
        raise SteerError(f"--beside: unknown model {name!r}; known: {', '.join(NAMES)}")

    @property
    def price(self) -> Price:
        """FLOPs of a row."""
        return expert_mixtures.price(self.mixture) if self.mixture else Price.of(self.shape)

    @property
    def parameters(self) -> int:
        """All parameters of the model."""
        return (
            expert_mixtures.parameters(self.mixture)
            if self.mixture
            else stored_bytes(self.shape, 1)
        )

    def weights(self, asked: str) -> str:
        """The format of its weights; ``asked``: that of the other models, "bf16" or "fp8"."""
        published = self.mixture is not None and self.mixture.expert_bits is not None
        return "4-bit experts, else bf16" if published else asked

    def resident_bytes(self, element_bytes: int) -> float:
        """Bytes of all weights; ``element_bytes`` counts where it has no format of its own."""
        if self.mixture:
            return expert_mixtures.resident_bytes(self.mixture, element_bytes)
        return stored_bytes(self.shape, element_bytes)

    def read_bytes(self, element_bytes: int) -> tuple[float, float]:
        """Bytes of the weights that every tick reads, and of all experts (see ``coverage``)."""
        if self.mixture:
            return expert_mixtures.read_bytes(self.mixture, element_bytes)
        return weight_bytes(self.shape, element_bytes), 0.0

    def coverage(self, rows: float) -> float:
        """Share of the experts that a tick of ``rows`` rows reads; 0.0 for a dense model."""
        return expert_mixtures.coverage(self.mixture, rows) if self.mixture else 0.0


def read_names(text: str | None) -> list[Alone]:
    """The models of a comma-separated list, each once; none for None. SteerError if unknown."""
    if text is None:
        return []
    return [Alone.named(name) for name in dict.fromkeys(part.strip() for part in text.split(","))]
