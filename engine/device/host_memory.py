"""The host's free memory, of which an arena on a CPU may take a share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Control groups of version 2 (True) and version 1: their folder, the files with a group's limit and
# usage, and the prefix of the counts of cached file pages, which can be dropped.
_GROUPS = {
    True: ("sys/fs/cgroup", "memory.max", "memory.current", ""),
    False: ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


def available(root: Path = Path("/")) -> int | None:
    """Bytes that can still be allocated without swapping; None if the system does not say.

    This is the kernel's MemAvailable, or less if this process is in a control group (such as a
    container) with less left. Memory counts once it is written: allocated but untouched memory is
    still available.

    Args:
        root: the folder that holds ``proc`` and ``sys``.
    """
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return _free_pages()
    line = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return min([1024 * int(line[1]), *_left_in_groups(root)]) if line else _free_pages()


def _free_pages() -> int | None:
    """Bytes of free pages, for systems without /proc; None if unknown."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # not on every system
        return None


def _left_in_groups(root: Path) -> Iterator[int]:
    """Bytes that this process's control group, and each group above it, may still use."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):  # a group's name need not be UTF-8
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base, *names = _GROUPS[not controllers]
        group = PurePosixPath(path.lstrip("/"))
        # In a container the path may be the host's; the container's own group is the visible root.
        for place in (group, *group.parents):
            left = _left(root / base / place, *names)
            if left is not None:
                yield left


def _left(group: Path, limit: str, used: str, prefix: str) -> int | None:
    """Bytes that one group may still use; None if it sets no limit, or does not exist."""
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return None
        statistics = (group / "memory.stat").read_text()
        files = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", statistics, re.MULTILINE)
        return max(0, int(most) - int((group / used).read_text()) + sum(map(int, files)))
    except (OSError, ValueError):
        return None
