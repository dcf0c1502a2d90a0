"""The errors that the engine raises on a request that it cannot serve."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self


class SteerError(ValueError):
    """Bad input: one line that names what is wrong and what would be right.

    field: the parameter at fault, such as "max_tokens"; None if the error is of no single one.
    """

    def __init__(self, message: object = "", field: str | None = None) -> None:
        super().__init__(message)  # the message alone, so that a pickled copy can be made of it
        self.field = field

    def within(self, where: str) -> Self:
        """The same error with what it is about at the message's beginning, such as "prompt 3"."""
        return type(self)(f"{where}: {self}", self.field)


class QueueFullError(SteerError):
    """The engine refuses a request because too many wait already; it can be sent again later."""


class UnavailableError(SteerError):
    """The engine takes no requests any more: it is closed or about to be, or its thread failed."""


class ContextLengthError(SteerError):
    """A prompt and its ``max_tokens`` are longer than the context, or than the KV arena."""


@contextmanager
def about(field: str) -> Iterator[None]:
    """A block, or a decorated function, whose errors are of one parameter.

    An error that names its field keeps it.
    """
    try:
        yield
    except SteerError as error:
        error.field = error.field or field
        raise
