"""``steer calibrate``: the right window without labels, tau for a target, and refusals."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from bench.tasks import arithmetic
from engine import Calibration, Engine
from engine.cli import main
from engine.config import TINY
from engine.tuning.ranking import auroc
from engine.tuning.target import Target

RIGID = Path(__file__).parents[1] / "data" / "rigid"
RIGID_PAIR = [
    "--pair=custom",
    f"--small={RIGID / 'small'}",
    f"--large={RIGID / 'large'}",
    "--max-tokens=120",
]
TINY_PAIR = ["--max-tokens=80"]


def prompts(folder: Path, count: int, style: str = "open", answers: bool = False) -> Path:
    path = folder / f"{style}.jsonl"
    rows: list[dict[str, Any]] = []
    for problem in arithmetic.problems("calibration", count, seed=8, style=style):
        rows.append({"prompt": problem.prompt} | ({"answer": problem.answer} if answers else {}))
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_it_finds_the_probe_on_rigid_steps_without_answers(tmp_path: Path, capsys):
    """The first token is a copy there: components lie apart, yet they predict nothing."""
    output = tmp_path / "c.json"
    path = prompts(tmp_path, 100, "rigid")
    assert main(["calibrate", str(path), *RIGID_PAIR, f"--output={output}"]) == 0
    out = capsys.readouterr().out
    assert "steps open with what is certain" in out and "recommended: max_prob over probe:8" in out
    found = json.loads(output.read_text())
    assert found["window"].startswith("probe:8") and found["provenance"]["auroc"] > 0.9
    assert found["errors"][0] > 0.5 > 0.1 > found["errors"][1]
    for picture in ("c-histogram.png", "c-reliability.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_a_calibration_is_used_where_it_belongs(tmp_path: Path, capsys):
    """Boundary on open steps; a target of FLOPs; the file works with this pair and no other.

    Answers may be as long as the context leaves room for: 1024 tokens would never fit this pair.
    """
    output = tmp_path / "c.json"
    path = prompts(tmp_path, 60)
    flags = [f"--output={output}", "--target=flops:0.7", "--no-plots"]
    assert main(["calibrate", str(path), *flags]) == 0
    assert sorted(tmp_path.iterdir()) == [output, path]
    raw = json.loads(output.read_text())
    assert raw["window"] == "boundary" and raw["provenance"]["aim_reached"]
    assert raw["provenance"]["aim"] == "flops:0.7:catchup against the large model's answers"
    at = {row["tau"]: row for row in raw["provenance"]["grid"]}[raw["tau"]]
    assert at["flops_catchup"] <= 0.7 and raw["shape"]["step_tokens"] > 3
    for policy in ("steer", "steer-cost:2"):
        asked = ["generate", "47+36*37?\\n\\n", f"--calibration={output}", f"--policy={policy}"]
        assert main(asked) == 0
    capsys.readouterr()
    engine = ["--pair=custom", f"--small={RIGID / 'small'}", f"--large={RIGID / 'large'}"]
    assert main(["generate", "4+3?", f"--calibration={output}", *engine]) == 2
    assert "fitted on pair tiny-" in capsys.readouterr().err


def test_tau_for_an_accuracy_and_for_a_share(tmp_path: Path):
    path = prompts(tmp_path, 60, answers=True)
    for target, holds in (
        ("loss:0.05", lambda row, large: row["accuracy"] >= large["accuracy"] - 0.05),
        ("share:0.1", lambda row, large: row["large"] <= 0.1),
    ):
        output = tmp_path / f"{target[:4]}.json"
        flags = [*TINY_PAIR, f"--output={output}", f"--target={target}", "--no-plots"]
        assert main(["calibrate", str(path), *flags]) == 0
        found = Calibration.load(output, Engine("tiny").fingerprint)
        assert found.provenance["aim_reached"]
        assert found.provenance["aim"].endswith("against the answers")
        at = {row["tau"]: row for row in found.provenance["grid"]}[found.tau]
        assert holds(at, found.provenance["large_alone"])


def test_two_boundaries_of_one_kind(ring, tmp_path: Path, capsys):
    """Every step is the same: no mixture of two can be fitted, and no file is written."""
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "abc"}\n' * 4)
    folders = [f"--small={ring.folders[0]}", f"--large={ring.folders[1]}"]
    flags = ["--pair=custom", *folders, "--max-tokens=40", f"--output={tmp_path / 'c.json'}"]
    assert main(["calibrate", str(path), *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "nothing is worth calibrating on" in error
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


@pytest.mark.parametrize(
    ("lines", "flags", "message"),
    [
        (None, ["--delimiter=zz"], "no boundary in any of 12 answers: no step ended in 'zz'"),
        (None, ["--target=joy:1"], "target 'joy:1': expected loss:X"),
        (None, ["--target=flops:0.5:guess"], "an accounting of decode, catchup, reprefill"),
        (None, ["--window=answer"], "a calibration is about steps"),
        (None, ["--window=paragraph"], "unknown window 'paragraph'"),
        (None, ["--signal=mood"], "unknown signal 'mood'"),
        (None, ["--limit=0"], "--limit must be at least 1"),
        (None, ["--limit=1", "--signal=max_prob", "--window=step"], "at least 8 finite values"),
        ([{"prompt": "1+2?", "answer": " "}], [], ":1: the answer is empty"),
        ([{"prompt": "1+2?", "answer": 3}, {"prompt": "4?"}], [], ":2: give an answer on every"),
        ([{"text": "1+2?"}], [], ':1: expected {"prompt": text}'),
        ([], [], "no prompt in this file"),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(
    tmp_path: Path, capsys, lines: list[dict[str, Any]] | None, flags: list[str], message: str
):
    path = tmp_path / "p.jsonl"
    if lines is None:
        path = prompts(tmp_path, 12)
    else:
        path.write_text("\n".join(map(json.dumps, lines)))
    flags = [*TINY_PAIR, f"--output={tmp_path / 'c.json'}", *flags]
    assert main(["calibrate", str(path), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_area_against_all_pairs():
    """With chances for labels it is the mean over all draws of labels' pairs, by weight."""
    draw = random.Random(5)
    scores = [draw.randrange(6) for _ in range(60)]
    wrong = [draw.random() for _ in scores]
    items = list(zip(scores, wrong, strict=True))
    won = sum(
        bad * (1 - other) * ((low < high) + (low == high) / 2)
        for low, bad in items
        for high, other in items
    )
    total = sum(wrong) * sum(1 - w for w in wrong)
    assert auroc(scores, wrong) == pytest.approx(won / total)
    assert auroc([1, 2, 3, 4], [1, 1, 0, 0]) == 1 and auroc([1, 1], [1, 0]) == 0.5


def test_targets_read_back():
    for text in ("loss:0.01", "accuracy:0.9", "share:0.2", "flops:0.5:decode"):
        assert str(Target.parse(text)) == text
    assert Target.parse("flops:0.5").accounting == "catchup"


def test_the_stored_calibration_knows_the_shape_of_answers():
    stored = Calibration.load(TINY / "calibration.json", Engine("tiny").fingerprint)
    assert stored.shape and 3 < stored.shape.step_tokens < 8
