"""``steer calibrate --mark``: the mark of a verification for a target."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from engine.cli import main
from engine.tuning.marks import MARKS

from .test_calibrate import prompts


def chosen(out: str) -> float:
    found = re.search(r"recommended: --policy verify:([0-9.]+);", out)
    assert found, out
    return float(found[1])


def rows(out: str) -> dict[str, list[float]]:
    """By mark: accuracy, share of the large model's tokens, FLOPs."""
    found = re.findall(r"^ +(\S+) +([0-9.]+) +([0-9.]+)% +([0-9.]+) +([0-9.]+)$", out, re.M)
    return {name: [float(n) for n in numbers] for name, *numbers in found}


def test_the_lowest_mark_that_is_good_enough(tmp_path: Path, capsys: Any) -> None:
    path = prompts(tmp_path, 60, answers=True)
    assert main(["calibrate", str(path), "--mark", "--target=loss:0.02"]) == 0
    out = capsys.readouterr().out
    seen = rows(out)
    mark = chosen(out)
    assert "target loss:0.02: met" in out
    assert seen[f"{mark:g}"][0] >= seen["large"][0] - 0.02
    below = [name for name in seen if name != "large" and float(name) < mark]
    assert all(seen[name][0] < seen["large"][0] - 0.02 for name in below)
    assert mark == MARKS[0] or below
    assert main(["generate", "4+3?", f"--policy=verify:{mark:g}"]) == 0


def test_the_highest_mark_that_is_cheap_enough(tmp_path: Path, capsys: Any) -> None:
    """Without answers the large model's count as right."""
    path = prompts(tmp_path, 40)
    for limit in (0.04, 0.0):
        assert main(["calibrate", str(path), "--mark", f"--target=share:{limit}"]) == 0
        out = capsys.readouterr().out
        share = rows(out)[f"{chosen(out):g}"][1] / 100
        assert (share <= limit + 0.0005) == (f"target share:{limit:g}: met" in out)
    assert chosen(out) == MARKS[0] and "NOT met by any mark" in out
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "--mark needs a --target that answers can meet"),
        (["--target=agreement:0.9"], "--mark needs a --target that answers can meet"),
        (["--target=loss:0.1", "--retokenize"], "--mark cannot go with --retokenize"),
    ],
)
def test_refusals(tmp_path: Path, capsys: Any, flags: list[str], expected: str) -> None:
    assert main(["calibrate", str(prompts(tmp_path, 3)), "--mark", *flags]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
