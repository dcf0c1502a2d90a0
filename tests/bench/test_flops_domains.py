"""``python -m bench.flops`` on the pair's three tasks and on data sets, from outside."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench.flops import main
from bench.tasks.registry import TASKS


def read(path: Path) -> dict[str, dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["policy"]: row for row in rows}


@pytest.mark.parametrize("task", [name for name in TASKS if name != "arithmetic"])
def test_the_pair_serves_its_other_tasks(task: str, tmp_path: Path):
    """Large knows them, small does not, steer is near large at a fraction of its decoding."""
    path = tmp_path / "rows.jsonl"
    arguments = [f"--task={task}", "--problems=60", "--policies=small,steer,random"]
    assert main([*arguments, f"--json={path}"]) == 0
    rows = read(path)
    assert rows["large"]["accuracy"] > 0.9 > rows["small"]["accuracy"] + 0.2
    assert rows["steer"]["accuracy"] >= rows["large"]["accuracy"] - 0.07
    assert rows["steer"]["accuracy"] > rows["random"]["accuracy"]
    assert rows["steer"]["flops_decode"] < 0.5
    assert rows["steer"]["problems"] == f"{task} mixed, seed 0"


def test_all_tasks_in_one_run(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    assert main(["--task=all", "--problems=30", "--policies=small", f"--json={path}"]) == 0
    assert read(path)["large"]["n"] == 30 and read(path)["large"]["accuracy"] > 0.85


def test_a_reasoning_gym_task_runs_on_the_pair(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    source = "reasoning-gym:path_star,degree=2,min_path_length=2,max_path_length=2"
    arguments = [f"--dataset={source}", "--problems=25", "--max-tokens=30", "--policies=small"]
    assert main([*arguments, f"--json={path}"]) == 0
    row = read(path)["large"]
    assert row["n"] == 20 and row["problems"] == source and row["errors"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=reasoning-gym:chain_sum", "--problems=4"], "the tokenizer does not know 'S'"),
        (["--dataset=reasoning-gym:nothing"], "reasoning-gym has no task 'nothing'"),
        (["--dataset=reasoning-gym:chain_sum", "--task=hops"], "--task is about the embedded"),
        (["--dataset=reasoning-gym:path_star,degree=9", "--problems=4"], "nodes, the embedded"),
        (["--model-pair=qwen-1.5b/qwen-7b", "--task=hops"], "--task needs weights"),
    ],
)
def test_bad_sources_get_one_line(arguments: list[str], message: str, capsys):
    assert main(arguments) == 2
    errors = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error:")]
    assert len(errors) == 1 and message in errors[0]


def test_a_problem_must_not_calibrate_and_test(tmp_path: Path, capsys):
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "1+1?", "answer": "2"}\n' * 2)
    assert main([f"--dataset={path}"]) == 2
    assert "d.jsonl:2: repeats" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "source", "extra"),
    [("reasoning_gym", "reasoning-gym:chain_sum", "gym"), ("math_verify", "d.jsonl", "math")],
)
def test_a_missing_package_is_named_with_its_extra(
    module: str, source: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("d.jsonl").write_text('{"prompt": "1", "answer": 1}\n{"prompt": "2", "answer": 2}\n')
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert main([f"--dataset={source}"]) == 2
    assert f"pip install 'steer-engine[{extra}]'" in capsys.readouterr().err
