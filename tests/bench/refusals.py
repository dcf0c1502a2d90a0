"""What a command says where it refuses."""

from __future__ import annotations

import pytest


def refused(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refusal says; bars may stand before it."""
    assert code == 2
    lines = capsys.readouterr().err.splitlines()
    (said,) = [line for line in lines if line.startswith("error: ")]
    assert lines[-1] == said
    return said
