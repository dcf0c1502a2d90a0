"""``python -m bench.commits``: two commits compared, here without building them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.commits import Tree, compared, main, measure

ROOT = Path(__file__).parents[2]


def checkout(folder: Path) -> Tree:
    """This checkout as if it were a commit that was built."""
    folder.mkdir()
    for package in ("engine", "kernels", "bench"):
        (folder / package).symlink_to(ROOT / package)
    return Tree(folder.name, folder)


def test_a_commit_is_as_fast_as_itself(tmp_path: Path):
    """Measured for real, so no ratio is demanded but one that is a number above 0."""
    trees = [checkout(tmp_path / name) for name in ("before", "after")]
    times = measure(*trees, rounds=1, sequences="2", ticks=20)
    assert [row["measured"] for row in compared(times)] == [
        "core, decode, 2 sequences",
        "core, mixed, 2 sequences",
        "engine, a token",
    ]
    assert all(row["ratio"] > 0 for row in compared(times))


def test_ratios_are_those_of_a_round():
    """The machine was twice as slow in the second round."""
    (row,) = compared([{"a": 10.0}, {"a": 11.0}, {"a": 20.0}, {"a": 22.0}])
    assert (row["before_us"], row["after_us"]) == (15.0, 16.5)
    assert row["ratio"] == pytest.approx(1.1) == row["ratio_least"] == row["ratio_most"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["no-such-commit"], "no-such-commit"), (["HEAD", "--rounds=0"], "--rounds must be at least")],
)
def test_bad_input(flags: list[str], said: str, capsys):
    assert main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
