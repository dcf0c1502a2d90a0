"""Reading small text files that a user names."""

from __future__ import annotations

from pathlib import Path

from engine.errors import SteerError


def read_text(path: Path, what: str) -> str:
    """The file's text. SteerError that names the file where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SteerError(f"{path}: no such {what}") from None
    except UnicodeDecodeError as error:
        raise SteerError(f"{path}: not UTF-8 text: {error}") from None
    except OSError as error:
        raise SteerError(f"{path}: cannot be read: {error.strerror}") from None
