"""How much memory the host has free: what an arena on a CPU may be taken from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Of control groups, version 2 and version 1: where they are, the files that say what a group may
# use and what it uses, and how its statistics call the files in memory, which can be dropped.
_GROUPS = {
    True: ("sys/fs/cgroup", "memory.max", "memory.current", ""),
    False: ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}


def available(root: Path = Path("/")) -> int | None:
    """Bytes that can still be allocated without swapping; None where the system does not say.

    That is what the kernel calls available, or less where this process is in a control group (a
    container is one) that has less left. Memory is counted as it is used: what was allocated and
    never written is still available.

    Args:
        root: the folder that holds ``proc`` and ``sys``.
    """
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return _free_pages()
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return min([1024 * int(found[1]), *_left_in_groups(root)]) if found else _free_pages()


def _free_pages() -> int | None:
    """Without /proc."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # not on every system
        return None


def _left_in_groups(root: Path) -> Iterator[int]:
    """What this process's control group, and each one above it, may still use."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):  # a name that is no text
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base, *names = _GROUPS[not controllers]
        group = PurePosixPath(path.lstrip("/"))
        # In a container the path may be the host's; its own group is the top of what it sees.
        for place in (group, *group.parents):
            left = _left(root / base / place, *names)
            if left is not None:
                yield left


def _left(group: Path, limit: str, used: str, prefix: str) -> int | None:
    """Of one group; None where it sets no limit, or does not exist."""
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return None
        statistics = (group / "memory.stat").read_text()
        files = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", statistics, re.MULTILINE)
        return max(0, int(most) - int((group / used).read_text()) + sum(map(int, files)))
    except (OSError, ValueError):
        return None
