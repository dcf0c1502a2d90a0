"""One thread at a time drives an engine, in the process that made it or in a fork of that."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from engine.errors import SteerError
from kernels.ops import torch_after_fork

_HOLDER = "holder"
_POLL = 1e-3  # seconds between looks at an engine that another thread drives


class OneThread:
    """Who is inside an engine's calls: ``with one_thread():`` around all that changes it.

    The thread inside may enter again, as a policy's own calls do. Another one is refused.
    """

    def __init__(self, forks: bool) -> None:
        """``forks``: whether the engine can be used in a forked process; on a GPU it cannot."""
        self._forks = forks
        self._process = os.getpid()
        # At most one entry, the process and the thread inside. setdefault() is one atomic step, and
        # an interrupt cannot fall between taking the place and knowing that it is taken.
        self._inside: dict[str, tuple[int, int]] = {}

    @contextmanager
    def __call__(self, wait: bool = False) -> Iterator[None]:
        """Hold the engine.

        Args:
            wait: for a thread that is inside, instead of an error.

        Raises:
            SteerError: if another thread is inside; if the process was forked and the engine cannot
                be used in it.
        """
        caller = os.getpid(), threading.get_ident()
        nested = self._inside.get(_HOLDER) == caller
        if caller[0] != self._process and not self._forks:
            raise SteerError(
                "an engine on a GPU cannot be used in a forked process: make the engine there, "
                "and start the process by spawn"
            )
        try:
            while (holder := self._inside.setdefault(_HOLDER, caller)) != caller:
                self._refuse(holder[0] != caller[0], wait)
            with torch_after_fork():
                yield
        finally:
            if not nested and self._inside.get(_HOLDER) == caller:
                del self._inside[_HOLDER]

    @staticmethod
    def _refuse(other_process: bool, wait: bool) -> None:
        if other_process:
            raise SteerError(
                "the process was forked in the middle of a call of this engine, which cannot "
                "go on here: make a new engine, or fork between calls"
            )
        if not wait:
            raise SteerError(
                "an engine is driven by one thread at a time; use AsyncEngine or a lock"
            )
        time.sleep(_POLL)


class _Engine(Protocol):
    @property
    def _driver(self) -> Any: ...


_E = TypeVar("_E", bound=_Engine)
_P = ParamSpec("_P")
_R = TypeVar("_R")


def by_one_thread(method: Callable[Concatenate[_E, _P], _R]) -> Callable[Concatenate[_E, _P], _R]:
    """A method of the engine that one thread at a time may be in, from its beginning to its end."""

    @functools.wraps(method)
    def alone(self: _E, /, *arguments: _P.args, **named: _P.kwargs) -> _R:
        with self._driver.one_thread():
            return method(self, *arguments, **named)

    return alone
