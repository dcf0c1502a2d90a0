"""Progress bars that leave no trace where none is wanted."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol


class Bar(Protocol):
    """What is used of a bar; a context manager."""

    def __enter__(self) -> Bar: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def update(self, count: int = 1) -> object:
        """So many more are done."""


class _Hidden:
    """tqdm starts a thread for each process that makes a bar, even for one that is not shown."""

    def __enter__(self) -> _Hidden:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def update(self, count: int = 1) -> None:
        pass


def progress_bar(total: int, shown: bool, label: str | None = None, unit: str = "it") -> Bar:
    """A bar on standard error, or none."""
    if not shown:
        return _Hidden()
    from tqdm import tqdm

    bar: Bar = tqdm(total=total, desc=label, unit=unit)
    return bar
