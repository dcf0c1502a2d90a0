"""``python -m bench.flops``, from outside."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.flops import main
from engine import Calibration, Engine
from engine.config import TINY

FIELDS = {
    "policy",
    "n",
    "accuracy",
    "ci_low",
    "ci_high",
    "large_step_share",
    "flops_decode",
    "flops_catchup",
    "flops_reprefill",
    "recomputed_share",
    "seconds",
    "tokens_per_second",
    "pair",
    "machine",
    "versions",
    "commit",
    "date",
}


def read(path: Path) -> dict[str, dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["policy"]: row for row in rows}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of all policies on 60 problems: its rows, plot and traces."""
    folder = tmp_path_factory.mktemp("flops")
    files = [f"--json={folder / 'rows.jsonl'}", f"--plot={folder / 'plot.png'}"]
    files += [f"--save-traces={folder / 'traces'}", f"--save-calibration={folder / 'c.json'}"]
    assert main(["--problems=60", *files]) == 0
    return folder


def test_rows_have_their_fields(tiny: Path):
    rows = read(tiny / "rows.jsonl")
    assert set(rows) == {"small", "large", "speculate", "random", "threshold", "steer"}
    for row in rows.values():
        assert row.keys() >= FIELDS
        assert row["n"] == 60 and row["ci_low"] <= row["accuracy"] <= row["ci_high"]


def test_rows_make_sense(tiny: Path):
    """The claim of the project, on a small sample: steer near large, random far below."""
    rows = read(tiny / "rows.jsonl")
    large, steer = rows["large"], rows["steer"]
    assert large["flops_decode"] == large["flops_catchup"] == large["flops_reprefill"] == 1
    assert rows["small"]["accuracy"] < rows["random"]["accuracy"] + 0.1 < steer["accuracy"]
    assert steer["accuracy"] >= large["accuracy"] - 0.05
    assert steer["flops_decode"] < 0.3
    assert steer["flops_decode"] < steer["flops_catchup"] < 1
    assert rows["random"]["large_step_share"] == pytest.approx(steer["large_step_share"], abs=0.1)


def test_plot_and_traces_are_written(tiny: Path):
    assert (tiny / "plot.png").read_bytes().startswith(b"\x89PNG")
    names = {p.stem for p in (tiny / "traces").iterdir()}
    assert names == {"small", "large", "speculate", "random", "threshold", "steer"}


def test_a_saved_calibration_gives_the_same_rows(tiny: Path, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    arguments = ["--problems=60", "--policies=steer", f"--calibration={tiny / 'c.json'}"]
    assert main([*arguments, f"--json={rows}"]) == 0
    before, after = read(tiny / "rows.jsonl")["steer"], read(rows)["steer"]
    for field in ("accuracy", "tau", "flops_decode", "flops_catchup", "flops_reprefill", "rows"):
        assert before[field] == after[field], field


def test_the_papers_rule_beside_ours(tmp_path: Path):
    """In lock-step, and with mixtures that are fitted because the policy is named."""
    rows = tmp_path / "rows.jsonl"
    names = "small,large,steer-paper,steer-served,steer-served:0.3:0.8+two-way:0.9"
    assert main(["--problems=60", f"--policies={names}", f"--json={rows}"]) == 0
    found = {row["policy"]: row for row in map(json.loads, rows.read_text().splitlines())}
    assert set(found) == set(names.split(","))
    for name in names.split(",")[2:]:
        assert 0 < found[name]["large_step_share"] < 1, name


def test_pricing_a_pair_without_weights(tiny: Path, tmp_path: Path, capsys):
    rows, trace = tmp_path / "rows.jsonl", tiny / "traces" / "steer.jsonl"
    arguments = ["--model-pair=qwen-1.5b/qwen-32b", f"--trace={trace}", f"--json={rows}"]
    assert main(arguments) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("Nothing was run and accuracy is not measured")
    priced, run = read(rows), read(tiny / "rows.jsonl")
    assert priced["steer"]["accuracy"] is None and priced["steer"]["n"] == 60
    assert priced["steer"]["large_step_share"] == run["steer"]["large_step_share"]
    # 1.5B of 32B is 4.6% of the row price; the embedded pair's is 3.4%: the same trace costs alike.
    assert 0.04 < priced["small"]["flops_catchup"] < 0.06
    assert priced["steer"]["flops_decode"] == pytest.approx(run["steer"]["flops_decode"], abs=0.05)


def again(trace: Path, rows: int) -> None:
    """A trace of which so many rows of the first request were computed again."""
    lines = [json.loads(line) for line in (TINY / "trace.jsonl").read_text().splitlines()]
    request = next(line for line in lines if line["type"] == "request")
    request["rows"]["large"]["recompute"] = [rows, 10 * rows]
    trace.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.mark.parametrize(("rows", "noted"), [(0, False), (1, False), (40, True)])
def test_a_trace_with_rows_computed_again_is_noted(tmp_path: Path, capsys, rows: int, noted: bool):
    """Above 5%, with what would have mended it."""
    again(tmp_path / "t.jsonl", rows)
    arguments = ["--model-pair=qwen-1.5b/qwen-32b", "--problems=1", "--beside=qwen-7b,gpt-oss-20b"]
    arguments += [f"--trace={tmp_path / 't.jsonl'}", f"--json={tmp_path / 'rows.jsonl'}"]
    assert main(arguments) == 0
    share = read(tmp_path / "rows.jsonl")["steer"]["recomputed_share"]
    note = f"steer: {share:.1%} of its rows were computed again, as memory for KV was short: record"
    out = capsys.readouterr().out
    assert (note in out) == noted == (share > 0.05)
    assert out.count("were computed again") == noted  # not of the models beside the pair
    assert "13.8 GB of weights (4-bit experts, else bf16), less than" in out
    assert (share > 0) == (rows > 0)


def test_a_run_short_of_memory_says_so(tmp_path: Path, capsys):
    """Rows, table and, above 5%, a note with the flags that mend it."""
    rows = tmp_path / "rows.jsonl"
    arguments = ["--problems=12", "--policies=large,random:0.5", f"--json={rows}"]
    for room, flags in (("ample", []), ("tight", ["--arena-tokens=112", "--max-sequences=2"])):
        assert main([*arguments, *flags]) == 0
        out = capsys.readouterr().out
        for name, row in read(rows).items():
            share = row["recomputed_share"]
            assert room == "tight" or share == 0
            line = next(line for line in out.splitlines() if line.startswith(f"{name} "))
            assert f" {share:.1%} " in line
            noted = re.search(
                rf"^{name}: {share:.1%} of its rows .* raise --arena-tokens", out, re.M
            )
            assert bool(noted) == (share > 0.05)


def test_pricing_the_stored_trace_is_immediate(capsys):
    assert main(["--model-pair", "qwen-1.5b/qwen-32b", "--problems", "10"]) == 0
    out = capsys.readouterr().out
    assert "10 requests" in out and "steer" in out


def test_a_dataset_runs_on_any_pair(tmp_path: Path, capsys):
    from bench.tasks import arithmetic

    data = tmp_path / "d.jsonl"
    problems = arithmetic.problems("test", 50)
    lines = [json.dumps({"prompt": p.prompt, "answer": p.answer}) for p in problems]
    data.write_text("\n".join(lines))
    folders = [f"--small={TINY / 'small'}", f"--large={TINY / 'large'}"]
    arguments = ["--model-pair=custom", *folders, f"--dataset={data}"]
    rows = tmp_path / "rows.jsonl"
    assert main([*arguments, "--max-tokens=400"]) == 2
    assert "d.jsonl:1: the prompt's" in capsys.readouterr().err
    assert main([*arguments, "--max-tokens=80", f"--json={rows}"]) == 0
    assert read(rows)["large"]["n"] == 40 and read(rows)["large"]["accuracy"] > 0.9
    assert "STEER minus large, paired" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model-pair=qwen-99b"], "unknown pair 'qwen-99b'; known: tiny"),
        (["--policies=steer,luck"], "unknown policy 'luck'; known: small, large"),
        (["--policies=random"], "random takes its share from steer"),
        (["--problems=0"], "--problems must be at least 1"),
        (["--trace=x.jsonl"], "--trace prices a pair without weights"),
        (["--model-pair=qwen-1.5b/qwen-7b", "--plot=x.png"], "--plot needs weights"),
        (["--model-pair=qwen-1.5b/qwen-7b", "--trace=nowhere.jsonl"], "no such trace file"),
        (["--model-pair=qwen-1.5b/qwen-7b", "--small=a", "--large=b"], "pass --dataset FILE"),
        (["--model-pair=qwen-1.5b/qwen-7b", "--small=a"], "the large model is missing"),
        (["--dataset=nowhere.jsonl"], "no such dataset file"),
        (["--plot=x.gif2"], "expected a file name that ends in .png, .svg, .pdf"),
        (["--plot=nowhere/x.png"], "no such folder"),
        (["--json=nowhere/x.jsonl"], "--json nowhere/x.jsonl: no such folder"),
        (["--json=."], "is a folder, expected a file"),
        (["--save-calibration=nowhere/c.json"], "no such folder"),
        (["--policies= , "], "names no policy"),
        (["--max-tokens=9"], "--max-tokens goes with --dataset"),
        (["--model-pair=qwen-1.5b/qwen-7b", "--problems=0"], "--problems must be at least 1"),
        (["--model-pair=qwen-1.5b/qwen-7b", "--policies=luck"], "unknown policy 'luck'"),
        (["--model-pair=custom"], "pass both models, each a folder or a GGUF file"),
        (["--dtype=int3"], "unknown dtype 'int3'"),
        (["--arena-tokens=10000000000000"], "no memory for an arena of"),
        (["--arena-tokens=10000000000000000"], "no memory for an arena of"),
        (["--calibration=nowhere.json", "--problems=2"], "no such calibration file"),
    ],
)
def test_bad_flags_get_one_line(arguments: list[str], message: str, capsys):
    assert main(arguments) == 2
    errors = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error:")]
    assert len(errors) == 1 and message in errors[0]


def test_a_calibration_of_another_pair_is_refused(tmp_path: Path, capsys):
    raw = json.loads((TINY / "calibration.json").read_text())
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**raw, "pair": "tiny-000000000000"}))
    assert main(["--problems=5", f"--calibration={path}"]) == 2
    assert "fitted on pair tiny-000000000000" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"type": "request"}'])
def test_a_damaged_trace_names_its_line(tmp_path: Path, capsys, line: str):
    path = tmp_path / "t.jsonl"
    path.write_text((TINY / "trace.jsonl").read_text().splitlines()[0] + "\n" + line + "\n")
    assert main(["--model-pair=qwen-1.5b/qwen-7b", f"--trace={path}"]) == 2
    assert "t.jsonl:2:" in capsys.readouterr().err


def test_the_stored_calibration_belongs_to_the_stored_weights():
    engine = Engine("tiny")
    assert Calibration.load(TINY / "calibration.json", engine.fingerprint).tau >= 0.5


def test_ctrl_c_keeps_the_finished_rows(tmp_path: Path):
    """The interrupt comes after the first row; the rest of the run would take much longer."""
    path = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "bench.flops", "--problems=400", f"--json={path}"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        # A job in the background ignores interrupts, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not (path.exists() and path.read_text().count("\n")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "interrupted" in err and "Traceback" not in err
    rows = read(path)
    assert "large" in rows and "steer" not in rows
    assert "large" in out


def test_a_name_is_not_given_to_other_weights(tmp_path: Path, capsys):
    """Rows must not call a tiny model Qwen."""
    lines = [f'{{"prompt": "{i}", "answer": 1}}' for i in (1, 2)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    folders = [f"--small={TINY / 'small'}", f"--large={TINY / 'large'}"]
    arguments = ["--model-pair=qwen-1.5b/qwen-7b", *folders, f"--dataset={tmp_path / 'd.jsonl'}"]
    assert main(arguments) == 2
    assert "this is not qwen-1.5b: layers is 2, expected 28" in capsys.readouterr().err


def test_a_broken_baseline_is_refused(tmp_path: Path, capsys):
    """Unusable logits of the large model: no row pretends to be relative to it."""
    shutil.copytree(TINY / "large", tmp_path / "large")
    path = tmp_path / "large" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("nan"))
    save_file(tensors, path)
    rows = tmp_path / "rows.jsonl"
    arguments = [f"--large={tmp_path / 'large'}", "--problems=3", f"--json={rows}"]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "3 of 3 answers of the large model alone ended in an error" in captured.err
    assert not rows.exists()


def test_an_interrupted_run_leaves_an_old_file_alone(tmp_path: Path):
    """Nothing is opened before there is a row to write."""
    path = tmp_path / "rows.jsonl"
    path.write_text("old\n")
    assert main([f"--json={path}", "--calibration=nowhere.json", "--policies=luck"]) == 2
    assert path.read_text() == "old\n"
