"""``python -m bench.flops --all --report DIR``, from outside: one domain, few problems."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench.flops import main

DOMAIN = "arithmetic-rigid"
pytestmark = pytest.mark.xdist_group("report")  # one process makes it, once


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "out"
    arguments = ["--all", f"--report={path}", f"--domains={DOMAIN}", "--problems=50", "--jobs=1"]
    assert main(arguments) == 0
    return path


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def settings(rows: list[dict], policy: str) -> list[dict]:
    return [r for r in rows if r["kind"] == "setting" and r["policy"] == policy]


def test_the_folder_is_whole(folder: Path):
    """Every picture that the page shows is there, and nothing else is beside it."""
    page = (folder / "README.md").read_text()
    shown = set(re.findall(r"!\[.*?\]\((.*?)\)", page))
    assert {p.name for p in folder.iterdir()} == shown | {"README.md", "rows.jsonl"}
    assert len(shown) == 3
    assert not list(folder.parent.glob(".report-*"))


def test_all_rivals_stand_in_one_run(rows: list[dict]):
    families = {r["policy"] for r in rows if r["kind"] == "setting"}
    assert families >= {
        "small",
        "large",
        "random",
        "query-random",
        "query",
        "cascade",
        "entropy",
        "judge",
        "previous",
        "max-logit",
        "threshold",
        "oracle",
        "steer",
        "steer-cost",
        "audit",
        "steer+audit",
    }
    assert all(r["n"] == 50 for r in rows if r["kind"] == "setting")
    (large,) = settings(rows, "large")
    assert large["flops_decode"] == large["flops_catchup"] == 1
    (oracle,) = settings(rows, "oracle")
    assert oracle["accuracy"] >= large["accuracy"] - 0.05 and oracle["flops_catchup"] < 1


def test_equal_time_and_equal_money(folder: Path, rows: list[dict]):
    """STEER stands against every family, speculate too, at its own time and its own money."""
    (steer,) = [r for r in settings(rows, "steer") if r["chosen"]]
    for cost in ("time_1", "money"):
        found = [r for r in rows if r["kind"] == "frontier" and r["accounting"] == cost]
        at_its_own = [r for r in found if r["first"] == "steer" and r["equal"] == "steer's cost"]
        assert {r["second"] for r in at_its_own} >= {"speculate", "verify", "cascade", "random"}
        assert {r["at"] for r in at_its_own} == {steer[cost]}
    (speculate,) = settings(rows, "speculate")
    (pair,) = [r for r in rows if r["kind"] == "paired" and r["second"] == "speculate"]
    for cost in ("time_1", "time_64", "money", "flops_catchup"):
        assert pair[cost] == pytest.approx(steer[cost] / speculate[cost])
    page = (folder / "README.md").read_text()
    assert "### Frontiers, time at load 1" in page and "### Frontiers, money" in page
    assert f"Against speculate it takes {pair['time_1']:.3f} of the time at load 1" in page
    assert "The embedded pair on such a card is a toy" in page


def test_rivals_are_tried_at_steers_own_share(rows: list[dict]):
    """No rival is judged by points that lie far from where STEER works."""
    (steer,) = [r for r in settings(rows, "steer") if r["chosen"]]
    shares = [r["large_step_share"] for r in settings(rows, "threshold")]
    assert min(abs(share - steer["large_step_share"]) for share in shares) < 0.05


def test_the_summary_says_what_the_rows_do(folder: Path, rows: list[dict]):
    page = (folder / "README.md").read_text()
    (steer,) = [r for r in settings(rows, "steer") if r["chosen"]]
    assert f"is right on {steer['accuracy']:.1%}" in page
    assert f"{1 - steer['flops_decode']:.1%} fewer FLOPs decode-only" in page


def test_the_probe_is_found_where_openings_tell_nothing(rows: list[dict]):
    signals = [r for r in rows if r["kind"] == "signal" and r["auroc"] is not None]
    (chosen,) = [r for r in signals if r["chosen"]]
    assert chosen["window"].startswith("probe:") and chosen["auroc"] > 0.9
    assert max(r["auroc"] for r in signals if r["window"] == "boundary") < 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--all"], "pass --report DIR"),
        (["--report=out"], "pass --all with it"),
        (["--all", "--report=out", "--problems=10"], "at least 50 --problems, got 10"),
        (["--all", "--report=out", "--domains=cooking-open"], "unknown domain 'cooking-open'"),
        (["--all", "--report=out", "--domains=hops-rigid"], "no pair here can do hops-rigid"),
        (["--all", "--report=out", "--jobs=0"], "--jobs must be at least 1, got 0"),
        (["--all", "--report=full"], "is there and holds no earlier report"),
    ],
)
def test_bad_flags(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
