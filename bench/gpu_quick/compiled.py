"""Counts the kernels that Triton compiles in this process; those from its cache do not count."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Compiled:
    """``names`` of compiled kernels; ``seconds`` of compilation; ``loaded``: from the cache."""

    names: list[str] = field(default_factory=list)
    seconds: float = 0.0
    loaded: int = 0

    def take(self) -> dict[str, Any]:
        """The counts so far; counting starts anew."""
        found = {
            "kernels": len(self.names),
            "seconds": round(self.seconds, 2),
            "loaded": self.loaded,
            "names": sorted(set(self.names)),
        }
        self.names, self.seconds, self.loaded = [], 0.0, 0
        return found


@contextmanager
def counted() -> Iterator[Compiled]:
    """Counts the compilations within this context."""
    from triton import knobs

    found = Compiled()

    def listen(*, src: Any, times: Any, cache_hit: bool, **_: Any) -> None:
        if cache_hit:
            found.loaded += 1
            return
        found.names.append(src.name)
        found.seconds += 1e-6 * times.total

    before, knobs.compilation.listener = knobs.compilation.listener, listen
    try:
        yield found
    finally:
        knobs.compilation.listener = before
