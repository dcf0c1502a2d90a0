"""Result rows: one JSON object a line, with the machine, the versions, the commit and the date."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from engine.files import JsonLines


def machine() -> str:
    """Processor and number of usable cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    usable = getattr(os, "sched_getaffinity", None)  # not on every system
    return f"{name}, {len(usable(0)) if usable else os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Python and the packages that figures depend on."""
    installed = {"python": platform.python_version()}
    for package in ("steer-engine", "torch", "triton", "numpy"):
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = "not installed"
    return installed


def commit() -> str:
    """The checkout's commit, marked if files differ from it; outside of a checkout STEER_COMMIT of
    the environment, else "unknown".

    An installed copy may lie inside another project's checkout: one counts only if git tracks this
    file in it.
    """
    here = Path(__file__)

    def git(*command: str) -> str:
        try:
            done = subprocess.run(
                ["git", "-C", str(here.parent), *command],
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            return ""
        return done.stdout.strip()

    if git("ls-files", here.name) != here.name:
        return os.environ.get("STEER_COMMIT") or "unknown"
    # Rows that were just written do not count as a change of the code.
    changes = ("status", "--porcelain", "--untracked-files=no", "--", ":/")
    changed = git(*changes, ":(exclude,top)bench/results")
    return git("describe", "--always") + ("-dirty" if changed else "")


def provenance() -> dict[str, Any]:
    """The fields that every row carries."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "date": now.isoformat(timespec="seconds"),
    }


class RowWriter(JsonLines):
    """Writes rows as they come, each with the common fields; without a path it writes nothing."""

    def __init__(self, path: Path | None, append: bool = False, **more: Any) -> None:
        """``more``: further common fields."""
        super().__init__(path, append)
        self._common = provenance() | more

    def write(self, row: dict[str, Any]) -> None:
        """Append one row and the common fields."""
        super().write({**row, **self._common})
