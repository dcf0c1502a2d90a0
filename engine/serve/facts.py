"""What a server says of its pair: in /v1/models, /version and the metrics."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from engine.engine import Engine


@dataclass(frozen=True)
class Facts:
    """Constants of the engine that is served.

    version: of steer-engine; "unknown" if it runs without being installed.
    pair: the pair's name.
    fingerprint: of the pair, as calibrations and traces name it.
    max_context: tokens of one sequence, prompt included.
    block_tokens: tokens of a KV block.
    """

    version: str
    pair: str
    fingerprint: str
    max_context: int
    block_tokens: int

    @classmethod
    def of(cls, engine: Engine) -> Facts:
        """Those of an engine."""
        return cls(
            installed_version(),
            engine.pair.name,
            engine.fingerprint,
            engine.max_context,
            engine.config.block_tokens,
        )


def installed_version() -> str:
    """The version of steer-engine."""
    try:
        return metadata.version("steer-engine")
    except metadata.PackageNotFoundError:
        return "unknown"
