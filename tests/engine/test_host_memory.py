"""What the host has free: the kernel's figure, and the control groups that allow less."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.device.host_memory import available

KIB, GIB = 2**10, 2**30
MEMINFO = (
    "MemTotal:       16384 kB\nMemFree:         1000 kB\nMemAvailable:    9000 kB\nCached: 5 kB\n"
)
FREE = 9000 * KIB
UNLIMITED = 9223372036854771712  # what version 1 says where there is no limit
V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"


def system(root: Path, cgroup: str | None, meminfo: str | None = MEMINFO) -> Path:
    """A folder with the files that a system shows."""
    (root / "proc/self").mkdir(parents=True)
    if meminfo is not None:
        (root / "proc/meminfo").write_text(meminfo)
    if cgroup is not None:
        (root / "proc/self/cgroup").write_text(cgroup)
    return root


def group(root: Path, place: str, files: dict[str, object]) -> None:
    """A control group's files."""
    (root / place).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / place / f"memory.{name}").write_text(f"{content}\n")


def v2(root: Path, place: str, limit: object, used: int = 0, active: int = 0, old: int = 0) -> None:
    """``active``, ``old``: bytes of files in memory."""
    stat = f"anon 17\nactive_file {active}\ninactive_file {old}\nworkingset_refault_file 9"
    group(root, f"{V2}/{place}", {"max": limit, "current": used, "stat": stat})


def v1(root: Path, place: str, limit: object, used: int = 0, active: int = 0, old: int = 0) -> None:
    """Likewise; without "total" the statistics are those of the group alone."""
    stat = f"active_file 5\ninactive_file 5\ntotal_active_file {active}\ntotal_inactive_file {old}"
    files = {"limit_in_bytes": limit, "usage_in_bytes": used, "stat": stat}
    group(root, f"{V1}/{place}", files)


def test_of_this_machine():
    """Some of what is there."""
    found, all_of_it = available(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found is not None and 2**20 < found <= all_of_it


@pytest.mark.parametrize("cgroup", [None, "", "0::/\n", "0::/user.slice/a\n", "4:memory:/x\n"])
def test_without_a_limit(tmp_path: Path, cgroup: str | None):
    """No groups, groups that are not there, groups without a limit."""
    root = system(tmp_path, cgroup)
    assert available(root) == FREE
    v2(root, "user.slice", "max", 7 * GIB)
    v1(root, "x", UNLIMITED, 7 * GIB)
    assert available(root) == FREE


def test_the_limit_of_a_container(tmp_path: Path):
    """Limit less use; files in memory, which can be dropped, are no use. Never below nothing."""
    root = system(tmp_path, "0::/\n")
    v2(root, "", 5000, 3000)
    assert available(root) == 2000
    v2(root, "", 5000, 3000, active=300, old=400)
    assert available(root) == 2700
    v2(root, "", 5000, 6000)
    assert available(root) == 0
    v2(root, "", 64 * GIB, 3000)
    assert available(root) == FREE


def test_the_tightest_group_counts(tmp_path: Path):
    """A limit may be set on any group above the process's own."""
    root = system(tmp_path, "0::/a.slice/b.slice/c.scope\n")
    v2(root, "a.slice/b.slice/c.scope", 8000, 1000)
    assert available(root) == 7000
    v2(root, "a.slice", 9000, 4000)
    assert available(root) == 5000
    v2(root, "a.slice/b.slice", 1000, 1)
    assert available(root) == 999
    v2(root, "other.slice", 10, 1)  # not this process's
    assert available(root) == 999


def test_version_1(tmp_path: Path):
    """The memory controller's line among others, its statistics with those of groups below."""
    root = system(tmp_path, "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n1:name=systemd:/y\n0::/z\n")
    v1(root, "", UNLIMITED, 4000)
    v1(root, "docker/abc", 8000, 6000, active=100, old=200)
    v1(root, "x", 10)  # of another controller
    assert available(root) == 2300


def test_version_1_in_a_container(tmp_path: Path):
    """The path is the host's, and what the container sees begins at its own group."""
    root = system(tmp_path, "9:pids:/docker/abc\n4:memory:/docker/abc\n")
    v1(root, "", 8000, 6000)
    assert available(root) == 2000


@pytest.mark.parametrize("broken", ["memory.max", "memory.current", "memory.stat"])
def test_a_group_that_cannot_be_read_is_no_limit(tmp_path: Path, broken: str):
    root = system(tmp_path, "0::/a\n")
    v2(root, "a", 5000, 3000)
    (root / V2 / "a" / broken).unlink()
    assert available(root) == FREE
    if broken != "memory.stat":
        (root / V2 / "a" / broken).write_text("nonsense")
        assert available(root) == FREE


@pytest.mark.parametrize("meminfo", [None, "MemTotal: 1 kB\n"])
def test_where_the_kernel_does_not_say(tmp_path: Path, meminfo: str | None):
    """Free pages, where the system counts them."""
    found = available(system(tmp_path, "0::/\n", meminfo))
    assert found is None or found > 0
