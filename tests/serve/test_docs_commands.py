"""Every ``curl`` command of docs/serving.md works, and answers with what the page shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.serve.served import Served

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
URL = "http://127.0.0.1:8000"


def commands(page: str) -> list[tuple[str, Any]]:
    """Each command, and the JSON in the block after it; None if that is of another kind."""
    blocks = [*BLOCK.findall(page), ("", "")]
    return [
        (text, json.loads(after) if kind == "json" else None)
        for (shell, text), (kind, after) in pairwise(blocks)
        if shell == "sh" and text.startswith("curl")
    ]


COMMANDS = commands(PAGE.read_text())
pytestmark = [
    pytest.mark.xdist_group("steer-serve"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]


def test_the_page_has_commands():
    assert len(COMMANDS) >= 5 and sum(shown is not None for _, shown in COMMANDS) >= 4


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_a_command_of_the_page(tiny_process: Served, number: int):
    command, shown = COMMANDS[number]
    assert URL in command
    # Without it, an error of the server is a success of curl.
    command = command.replace("curl ", "curl --fail-with-body --max-time 60 ", 1)
    done = subprocess.run(
        ["sh", "-c", command.replace(URL, tiny_process.url)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if shown is not None:
        check_shown(json.loads(done.stdout), shown)
    else:
        assert done.stdout.endswith("data: [DONE]\n\n")


def check_shown(found: Any, shown: Any) -> None:
    """What is shown is there, in its place: names, texts and lists of ids; counts may differ."""
    if isinstance(shown, dict):
        for name in shown:
            check_shown(found[name], shown[name])
    elif isinstance(shown, list) and shown and isinstance(shown[0], dict):
        for one_found, one_shown in zip(found, shown, strict=False):
            check_shown(one_found, one_shown)
        assert len(found) >= len(shown)
    elif isinstance(shown, str) or (isinstance(shown, list) and shown):
        assert found == shown
    else:
        assert isinstance(found, type(shown))
