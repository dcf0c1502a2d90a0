"""What the shell of the server needs of the service inside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol


class Abortable(Protocol):
    """An open request's answers."""

    def abort(self) -> None:
        """End them early; again does nothing."""
        ...


class Served(Protocol):
    """The part of ``AsyncEngine`` that the shell calls."""

    def alive(self, within: float = 5.0) -> bool:
        """Whether the engine's thread is idle, or has turned within so many seconds."""
        ...

    def snapshot(self) -> Mapping[str, Any]:
        """Its counts, see ``engine_numbers.py``."""
        ...

    async def drain(self, timeout: float) -> bool:
        """Refuse new requests, let the open ones end, abort the rest after ``timeout`` seconds."""
        ...

    async def aclose(self) -> None:
        """End it."""
        ...


class Service(Protocol):
    """The routes' object, in ``app.state.service``.

    served: the engine that answers.
    open: the answers of each open request, by the id that its answer has.
    """

    @property
    def served(self) -> Served:
        """The engine that answers."""
        ...

    @property
    def open(self) -> Mapping[str, Iterable[Abortable]]:
        """The answers of each open request, by the id that its answer has."""
        ...
