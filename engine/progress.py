"""Progress bars that leave no trace where none is wanted."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol


class Bar(Protocol):
    """The part of tqdm's bar that is used here; a context manager."""

    def __enter__(self) -> Bar: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def update(self, count: int = 1) -> object:
        """``count`` more are done."""


class _Hidden:
    """Stands in for tqdm, which starts a thread even for a bar that is not shown."""

    def __enter__(self) -> _Hidden:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def update(self, count: int = 1) -> None:
        pass


def progress_bar(total: int, shown: bool, label: str | None = None, unit: str = "it") -> Bar:
    """A bar on standard error; with ``shown`` false an object that draws nothing."""
    if not shown:
        return _Hidden()
    from tqdm import tqdm

    bar: Bar = tqdm(total=total, desc=label, unit=unit)
    return bar
