"""``python -m bench.gpu_quick`` on a simulated card at its smallest: times there mean nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu_quick import plan
from bench.gpu_quick.command import main
from bench.gpu_quick.fitting import DEFAULT, fitting_pair
from bench.gpu_quick.parts import decode
from bench.gpu_quick.result import FAILED, NOT_RUN, PASSED
from bench.lanes.device import Device
from bench.lanes.options import COMMON, Options
from bench.lanes.scripted_engine import ScriptedEngine
from engine import Engine
from engine.config import ModelConfig
from engine.config.pairs import Pair
from kernels.aot import registry
from tests.bench.gpu_quick_runs import (
    ROOT,
    command,
    rows,
    run,
    sleepers,
    states,
    wait_until,
    without_gpu,
)
from tests.card.simulated import GIB, simulated_card

pytestmark = without_gpu


def test_the_whole_flow(tmp_path: Path):
    """Every part passes, and its rows, figures and output are kept in few files."""
    done = run(tmp_path, "--stage", "all")
    assert done.returncode == 0, done.stdout + (tmp_path / "log.txt").read_text()[-3000:]
    assert states(done.stdout) == {part.key: PASSED for part in plan.PARTS}
    kept = rows(tmp_path)
    assert {row["bench"] for row in kept if "bench" in row} == {
        "card",
        "ops",
        "parity",
        "decode",
        "handoff",
        "overlap",
        "pair",
        "soak",
    }
    assert any(row.get("kind") == "gpu" and row["op"] == "confidence" for row in kept)
    assert {row["op"] for row in kept if row.get("bench") == "ops"} == set(registry.OPS)
    assert {row["quantise"] for row in kept if row.get("bench") == "handoff"} == {
        None,
        "int4",
        "fp8",
    }
    assert all(row["commit"] and row["versions"]["torch"] for row in kept)
    assert all(row.get("gpu") or row.get("device") for row in kept)  # the card
    assert (tmp_path / "summary.txt").read_text().strip() in done.stdout
    assert len(list(tmp_path.iterdir())) <= 8


def test_a_part_that_fails_holds_no_other_one_up(tmp_path: Path):
    """Not even that which shares its process; nor is anything of an earlier call lost."""
    (tmp_path / "rows.jsonl").write_text('{"bench": "earlier"}\n')
    (tmp_path / "summary.txt").write_text("earlier\n")
    done = run(tmp_path, "--stage", "time", "--parts", "4,5", fail="4")
    assert done.returncode == 1
    assert states(done.stdout) == {"4": FAILED, "5": PASSED}
    assert "RuntimeError: CUDA error: an illegal memory access" in done.stdout
    assert "Traceback (most recent call last)" in done.stdout.split("part 4:")[1]
    kept = rows(tmp_path)
    assert [row["bench"] for row in kept[:2]] == ["earlier", "fault"]
    assert {"handoff", "pair"} < {row["bench"] for row in kept}
    assert (tmp_path / "summary.txt").read_text().startswith("earlier\ngpu-quick, time: ")


def test_a_part_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path):
    done = run(tmp_path, "--stage", "prove", "--parts", "1,row", hang="1", sleep="997")
    assert states(done.stdout) == {"1": FAILED, "row": PASSED}
    assert "killed at its limit of 10 s" in done.stdout
    assert " in _hang" in done.stdout.split("part 1:")[1].splitlines()[3]  # where it was
    assert done.returncode == 1 and not sleepers("997")
    assert [row["bench"] for row in rows(tmp_path)][:2] == ["fault", "decode"]


def test_what_there_was_before_a_kill_is_on_disk(tmp_path: Path):
    """Of the run itself, not of a part; its process ends with it."""
    arguments, environment = command(
        tmp_path, "--stage", "prove", "--parts", "1,2", hang="2", sleep="998"
    )
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_until(
            lambda: "fault" in (tmp_path / "rows.jsonl").read_text(), tmp_path / "rows.jsonl"
        )
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = rows(tmp_path)
    assert {row["bench"] for row in found} == {"card", "fault"}
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["begin", "end", "begin"]
    for number in sleepers("998"):  # it was started by the part, and outlives a kill from outside
        os.kill(int(number), signal.SIGKILL)


def test_where_parity_fails_nothing_is_timed_and_the_culprit_is_named(tmp_path: Path):
    done = run(tmp_path, "--stage", "all", "--parts", "3,row,4", spoil="silu_mul")
    assert done.returncode == 1
    assert states(done.stdout) == {"3": FAILED, "bisect": PASSED, "row": NOT_RUN, "4": NOT_RUN}
    assert "decode of each model: parity failed" in done.stdout
    assert "culprits: silu_mul (replaced by its PyTorch reference" in done.stdout
    (verdict,) = [row for row in rows(tmp_path) if row["bench"] == "bisect"]
    assert verdict["culprits"] == ["silu_mul"]
    assert "position" in verdict["wrong"] and "expected" in verdict["wrong"]


def test_without_a_card_a_line_says_so(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_quick", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "error: PyTorch sees no NVIDIA GPU here, so nothing was run\n"
    assert not done.stdout
    assert not (tmp_path / "rows.jsonl").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--stage=shine"], "--stage: unknown 'shine'; known: prove, time, all"),
        (["--parts=1,9"], "--parts: unknown part '9'; known: 1, 2, 3, row, 4, 5, 6, 7"),
        (["--stage=prove", "--parts=5"], "part 5 belongs to --stage time, not to prove"),
        (["--seconds=9"], "--seconds 9: too short for part 1, which may take 10; give at least"),
        (["--seconds=soon"], "--seconds: expected a number of seconds, got 'soon'"),
        (["--seconds=nan"], "--seconds: expected a number of seconds, got 'nan'"),
        (["--out=/proc/here"], "--out /proc/here: cannot be written"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_bad_input(flags, said, tmp_path: Path, capsys):
    assert main([f"--out={tmp_path}", *flags]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and said in told.err and told.err.count("\n") == 1
    assert not told.out


@pytest.mark.parametrize(
    ("gib", "pair"),
    [
        (139, DEFAULT),
        (60, "qwen-1.5b/qwen-14b"),
        (39, "qwen-1.5b/qwen-7b"),
        (20, "qwen-0.5b/qwen-1.5b"),
        (2, None),
    ],
)
def test_a_pair_that_fits_is_found(gib: int, pair: str | None, monkeypatch):
    with simulated_card():
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _=None: (gib * GIB, gib * GIB))
        assert fitting_pair() == pair


def test_a_rehearsal_keeps_no_rows(tmp_path: Path):
    """It says what it compiled, which on the simulated card is nothing."""
    _, environment = command(tmp_path)
    flags = ["--parts", "compile-time", "--ahead-of", "row", "--limits", "60", "--quick"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu_quick.worker", *flags, "--out", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = rows(tmp_path)
    assert {row["bench"] for row in found} == {"compile"}
    assert [(row["part"], row["state"], row["kernels"]) for row in found] == [("row", PASSED, 0)]


COUNTED = """
from bench.gpu_quick.compiled import counted
from kernels.aot import registry
from kernels.aot.variant import ModelShape, compile_variant
variant = registry.op_variants("norm", ModelShape("small", 64, 96, 2, 1, 32, 160))[0]
with counted() as compiled:
    for _ in range(2):
        compile_variant(variant)
        found = compiled.take()
        print(found["kernels"], found["loaded"], *found["names"], found["seconds"] > 0)
"""


def test_what_is_compiled_is_counted(tmp_path: Path):
    """Once; then it comes from the cache."""
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COUNTED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=clean | {"TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.stdout.splitlines() == ["1 0 norm_kernel True", "0 1 False"]


def test_the_largest_batch_finds_room():
    """In the arena of a run on a card, with KV in the proportion of 1.5B and 32B."""
    options = Options("gpu_quick", None, {})
    options.parse(["--device", "cpu", "--arena-tokens", COMMON["arena_tokens"]["cuda"]])
    small = ModelConfig(512, 16, 32, 1, 1, 1, 16, tied=True)
    pair = Pair("proportions", made_up=(small, ModelConfig(512, 144, 32, 1, 9, 9, 16)))
    engine = Engine(pair, config=options.config(), dtype="bfloat16", device="cpu")
    scripted, repeats = ScriptedEngine(engine, Device("cpu")), int(decode.REPEATS)
    for model in (0, 1):
        ticks = scripted.decode(model, int(decode.BATCHES[-1]), int(decode.CONTEXT), repeats)
        assert len(ticks) == repeats
