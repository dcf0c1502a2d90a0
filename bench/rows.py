"""Result rows: one JSON object a line, with the machine, the versions, the commit and the date."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any


def machine() -> str:
    """Processor and number of usable cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def versions() -> dict[str, str]:
    """Python and the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for package in ("steer-engine", "torch", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str:
    """The checkout's commit, marked where files differ from it; "unknown" outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def provenance() -> dict[str, Any]:
    """The fields that every row carries."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "date": now.isoformat(timespec="seconds"),
    }


class RowWriter:
    """Writes rows as they come; what is written stays, whatever happens later."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("w") if path else None
        self._common = provenance()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file:
            self._file.close()

    def write(self, row: dict[str, Any]) -> None:
        """Add the common fields and write one line, flushed."""
        if self._file:
            self._file.write(json.dumps({**row, **self._common}) + "\n")
            self._file.flush()
