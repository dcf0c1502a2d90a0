"""``python -m bench.gpu_quick`` on a simulated card at its smallest: times there mean nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import rows as bench_rows
from bench.gpu_quick import flow as flows
from bench.gpu_quick import goals, plan
from bench.gpu_quick.agreement import Scale
from bench.gpu_quick.agreement import first_wrong as first_wrong_token
from bench.gpu_quick.checks.check import failures, first_wrong
from bench.gpu_quick.checks.tensors import Maker
from bench.gpu_quick.child import telling
from bench.gpu_quick.command import main
from bench.gpu_quick.fitting import DEFAULT, fitting_pair
from bench.gpu_quick.output import Follower, open_folder
from bench.gpu_quick.parts import bisect, decode, parity
from bench.gpu_quick.parts import ops as ops_part
from bench.gpu_quick.parts.bisect import SWITCHES, culprits_of
from bench.gpu_quick.parts.ops import _SMALLEST, CHECKS
from bench.gpu_quick.replaced import NAMES
from bench.gpu_quick.result import FAILED, NOT_RUN, PASSED, Result
from bench.gpu_quick.scene import PartFailedError, Scene
from bench.gpu_quick.summary import screen
from bench.gpu_quick.worker import run_part
from bench.lanes.device import Device
from bench.lanes.options import COMMON, Options
from bench.lanes.scripted_engine import ScriptedEngine
from engine import Engine
from engine.config import ModelConfig
from engine.config.pairs import Pair
from kernels import norm, ops
from kernels.aot import registry
from kernels.backends.triton import TritonBackend
from tests.card.simulated import GIB, simulated_card

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="there is a GPU, no need to simulate"
)


def command(folder: Path, *flags: str, **faults: str) -> tuple[list[str], dict[str, str]]:
    """A run, and the environment in which its parts see a card."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "tests/card/site"),
        "OMP_NUM_THREADS": "1",
        "STEER_CARD_FAULTS": json.dumps(faults),
    }
    flags = ("--quick", "--out", str(folder), *flags)
    return [sys.executable, "-m", "bench.gpu_quick", *flags], environment


def run(folder: Path, *flags: str, **faults: str) -> subprocess.CompletedProcess[str]:
    arguments, environment = command(folder, *flags, **faults)
    return subprocess.run(
        arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def states(said: str) -> dict[str, str]:
    """Of each part, as printed on the way."""
    lines = [line for line in said.split("gpu-quick, ")[0].splitlines() if " s  " in line]
    return {line.split()[0]: _state(line) for line in lines}


def _state(line: str) -> str:
    return next(state for state in (NOT_RUN, PASSED, FAILED) if f"  {state} " in line)


def sleepers(seconds: str) -> list[str]:
    """Processes that a part which hangs has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().split(b"\0")[:2] == [b"sleep", seconds.encode()]:
                found.append(path.parent.name)
        except OSError:
            continue
    return found


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


LOG = """more
Timeout (0:00:09)!
Thread 0x00007f01 (most recent call first):
  File "helper.py", line 1 in wait
Thread 0x00007f02 (most recent call first):
  File "graphs.py", line 7 in replay
  File "soak.py", line 9 in run
"""


def test_what_a_log_tells_of_an_end():
    """Where the main thread was, else what was printed last."""
    assert telling(LOG) == (
        "Timeout (0:00:09)!\nThread 0x00007f02 (most recent call first):\n"
        '  File "graphs.py", line 7 in replay\n  File "soak.py", line 9 in run'
    )
    crash = LOG.replace("Timeout (0:00:09)!", "Fatal Python error: Segmentation fault")
    crash = crash.replace("Thread 0x00007f01", "Current thread 0x00007f01")
    told = telling(crash).splitlines()
    assert told[0] == "Fatal Python error: Segmentation fault"
    assert told[1].startswith("Current thread") and told[2] == '  File "helper.py", line 1 in wait'
    assert telling("a\n" * 20 + "b\n\n").splitlines() == ["a"] * 11 + ["b"]
    assert telling("") == ""


def wait_until(condition, path: Path) -> None:
    end = time.monotonic() + 120
    while not (path.exists() and condition()):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_request_that_ends_early_is_wrong():
    """As one does whose logits are no numbers."""
    done = SimpleNamespace(prompt_token_ids=(2, 3), token_ids=(4,), finish_reason="error")
    assert str(first_wrong_token([done], None, "float32")) == (
        "request 0 ended at position 3: error"
    )


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


class Clock:
    """Stands for the processes of parts: each takes ``takes`` seconds of a clock that is told."""

    def __init__(self, takes: dict[str, float], failing: tuple[str, ...] = ()) -> None:
        self.now, self.takes, self.failing = 0.0, takes, failing
        self.limits: dict[str, float] = {}

    def watch(self, parts, limits, flags, folder, note):
        self.limits |= {part.key: limit for part, limit in zip(parts, limits, strict=True)}
        return SimpleNamespace(results=lambda: self._results(parts, limits), rehearsed=[], pair="")

    def _results(self, parts, limits):
        found = []
        for part, limit in zip(parts, limits, strict=True):
            spent = min(limit, self.takes.get(part.key, 1.0))
            self.now += spent
            found.append(Result(part, FAILED if part.key in self.failing else PASSED, spent))
        return found


def flow(clock: Clock, folder: Path, monkeypatch, stage: str, seconds: float) -> dict[str, str]:
    """States of all parts."""
    monkeypatch.setattr(flows, "Watch", clock.watch)
    monkeypatch.setattr(flows.time, "monotonic", lambda: clock.now)
    parts = tuple(plan.chosen(stage, None, quick=False))
    made = flows.Flow(flows.Request(stage, parts, open_folder(folder), seconds, False))
    made.run()
    return {result.part.key: result.state for result in made._results}


def test_the_soak_takes_what_is_left(tmp_path: Path, monkeypatch):
    clock = Clock({"compile-time": 30.0, "4": 70.0, "5": 100.0, "6": 40.0})
    assert set(flow(clock, tmp_path, monkeypatch, "time", 360).values()) == {PASSED}
    assert clock.limits == {"compile-time": 45, "4": 90, "5": 120, "6": 80, "7": 120}


def test_what_the_budget_does_not_hold_is_not_run(tmp_path: Path, monkeypatch):
    """Parts get what is left; the soak not less than it needs."""
    clock = Clock({"compile-time": 45.0, "4": 90.0, "5": 120.0, "6": 80.0})
    states = flow(clock, tmp_path, monkeypatch, "time", 300)
    assert clock.limits["6"] == 45 and states["6"] == PASSED and states["7"] == NOT_RUN
    assert "0 s of the budget are left, it needs 75" in (tmp_path / "summary.txt").read_text()


def test_a_shared_process_gets_no_part_that_does_not_fit(tmp_path: Path, monkeypatch):
    """Part 4 may take all that is left: part 5 waits for what it really takes."""
    clock = Clock({"compile-time": 20.0, "4": 30.0, "5": 99.0})
    states = flow(clock, tmp_path, monkeypatch, "time", 112)
    assert clock.limits["4"] == 90 and clock.limits["5"] == 62
    assert [key for key, state in states.items() if state == NOT_RUN] == ["6", "7"]


def test_what_stands_behind_a_lost_card_runs_in_another_process(tmp_path: Path, monkeypatch):
    """Until nothing is left or the part's time is over; then the reason is looked for."""
    asked = []

    def watch(parts, limits, flags, folder, note):
        asked.append((parts[0].key, round(limits[0]), flags[-1]))
        rest = {"compile-prove": None, "2": ["norm", "lm_head"]}.get(parts[0].key)
        if parts[0].key == "2" and "--only" in flags:
            rest = ["lm_head"] if flags[-1] == "norm,lm_head" else None
        state = FAILED if rest else PASSED
        found = [Result(part, state, 5.0, detail={"rest": rest} if rest else {}) for part in parts]
        return SimpleNamespace(results=lambda: found, rehearsed=[], pair="")

    monkeypatch.setattr(flows, "Watch", watch)
    parts = tuple(plan.chosen("prove", ["2"], quick=True))
    made = flows.Flow(flows.Request("prove", parts, open_folder(tmp_path), 240, True))
    assert made.run() == 1
    assert asked == [("2", 60, "--quick"), ("2", 55, "norm,lm_head"), ("2", 50, "lm_head")]
    assert [result.state for result in made._results] == [FAILED, FAILED, PASSED]


def test_a_lost_card_leaves_the_ops_behind_it(tmp_path: Path, monkeypatch):
    def broken(make):
        raise RuntimeError("CUDA error: an illegal memory access")

    with simulated_card():
        monkeypatch.setitem(ops_part.CHECKS, "norm", broken)
        monkeypatch.setattr(ops_part, "card_lost", lambda: True)
        with pytest.raises(PartFailedError) as told:
            ops_part.run(Scene(tmp_path, quick=True, only=["norm", "silu_mul", "skinny_gemm"]))
    assert "norm inputs (small): RuntimeError: CUDA error" in str(told.value)
    assert told.value.detail == {"rest": ["silu_mul", "skinny_gemm"]}
    assert {row["op"] for row in rows(tmp_path)} == {"norm"}


def test_an_error_of_the_engine_is_a_failure_of_parity(tmp_path: Path, monkeypatch):
    """All families are tried, the bisection begins where it was, and an error counts there too."""

    def broken(*_, **__):
        raise ValueError("no kernel for this")

    monkeypatch.setattr(parity, "_rows", broken)
    with simulated_card(), pytest.raises(PartFailedError) as told:
        parity.run(Scene(tmp_path, quick=True))
    where = {"family": "qwen3", "check": "runs", "dtype": "float32"}
    assert told.value.detail == {"parity": where} and "Traceback" in str(told.value)
    assert [row["dtype"] for row in rows(tmp_path)] == ["float32", "bfloat16"]
    monkeypatch.setattr(bisect, "build", broken)
    trial = bisect._trial(SimpleNamespace(), where, Scale(1, 1))
    assert str(trial([], [])) == "request 0 ended at position 0: ValueError: no kernel for this"
    monkeypatch.setattr(bisect, "card_lost", lambda: True)
    with pytest.raises(ValueError, match="no kernel"):
        trial([], [])


@pytest.mark.parametrize(
    ("failing", "left_out", "said"),
    [
        ("2", "4567", "part 2 of the proof failed"),
        ("3", ("row", *"4567"), "parity failed"),
        ("5", "", ""),
        ("compile-prove", "", ""),
    ],
)
def test_times_are_taken_if_the_proof_holds(
    failing: str, left_out: str, said: str, tmp_path: Path, monkeypatch
):
    states = flow(Clock({}, (failing,)), tmp_path, monkeypatch, "all", 600)
    assert {key for key, state in states.items() if state == NOT_RUN} == set(left_out)
    assert said in (tmp_path / "summary.txt").read_text()


def test_without_transformers_parity_is_not_run(tmp_path: Path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name)
    )
    found = run_part("3", Scene(tmp_path, quick=True))
    assert found == {
        "state": NOT_RUN,
        "reason": "transformers is not installed: pip install transformers",
    }


CPU = torch.device("cpu")


def makers(backend: ops.Backend) -> list[Maker]:
    return [Maker(shape, CPU, backend) for shape in _SMALLEST]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("op", [op for op in registry.OPS if op != "attention"])
def test_the_kernels_pass_the_checks(op: str):
    """The kernels themselves, in Triton's interpreter; attention's spans take it too long."""
    for make in makers(TritonBackend(CPU)):
        for check in CHECKS[op](make):
            assert failures(check) == [], (check.name, make.shape.name)


def test_decodes_pass_the_checks():
    assert failures(next(CHECKS["attention"](makers(TritonBackend(CPU))[1]))) == []


def test_checks_see_a_spoilt_kernel(monkeypatch):
    """A kernel that is launched with another constant than it should be."""
    right = norm.rms_norm
    monkeypatch.setattr(norm, "rms_norm", lambda x, weight, eps: right(x, weight, 0.3))
    told = failures(next(CHECKS["norm"](makers(TritonBackend(CPU))[0])))
    assert len(told) == 1 and told[0].startswith("output 0 [0, 0] is ")


class SeesTooMuch(ops.ReferenceBackend):
    def paged_attention(self, arena, plan, layer, query):
        longer = replace(plan, contexts=plan.contexts + 1)
        return super().paged_attention(arena, longer, layer, query)


def test_checks_see_a_key_too_many():
    """What follows a sequence's last key is NaN."""
    right, wrong = (
        failures(next(CHECKS["attention"](makers(backend)[1])))
        for backend in (ops.ReferenceBackend(), SeesTooMuch())
    )
    assert right == [] and wrong


class WritesElsewhere(ops.ReferenceBackend):
    def rope_kv(self, qkv, bias, rope, positions, arena, *rest):
        query = super().rope_kv(qkv, bias, rope, positions, arena, *rest)
        arena[-1, -1] = 1.0
        return query


def test_checks_see_a_key_in_the_wrong_place():
    check = next(CHECKS["rope_kv"](makers(WritesElsewhere())[1]))
    assert failures(check) == ["output 3 [0] is 1, expected 0"]


def test_checks_see_bits_that_depend_on_neighbours():
    check = next(CHECKS["norm"](makers(ops.ReferenceBackend())[0]))
    leaning = replace(
        check, run=lambda rows: tuple(x * (1 + (len(rows) == 1) / 128) for x in check.run(rows))
    )
    assert failures(check) == []
    assert "the last row alone has other bits" in " ".join(failures(leaning))


def test_what_is_no_number_is_wrong():
    right = torch.ones(2, 3)
    spoilt = right.clone()
    spoilt[1, 2] = float("nan")
    assert first_wrong(0, right, right.double(), 0.0, 0.0) is None
    wrong = first_wrong(0, spoilt, right.double(), 0.1, 0.1)
    assert wrong is not None and wrong.index == (1, 2)


@pytest.mark.parametrize(
    "culprits", [["graphs"], ["plan_ahead", "fused_head"], ["linear"], ["rope_kv", "sample"], []]
)
def test_bisection_finds_the_smallest_set(culprits: list[str]):
    """Where each culprit by itself makes it fail."""
    trials = []

    def trial(switches, replaced):
        trials.append((tuple(switches), tuple(replaced)))
        assert not replaced or "graphs" in switches  # references allow no recording
        left = set(culprits) - set(switches) - set(replaced)
        return "wrong" if left else None

    found, wrong, _ = culprits_of(trial)
    assert sorted(found) == sorted(culprits)
    assert wrong == ("wrong" if culprits else None)
    assert len(trials) < 2 * (len(SWITCHES) + len(NAMES))


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


def test_bisection_says_where_it_finds_nothing():
    assert culprits_of(lambda *_: "wrong")[::2] == (
        [],
        "it fails with every switch off and every op replaced as well",
    )


def test_figures_stand_beside_their_goals():
    """Of the rows that they are of, "-" where there is none."""
    common = {"versions": {"python": "3"}, "commit": "c", "date": "d"}
    found = [
        {
            "bench": "decode",
            "provider": "steer",
            "model": "small",
            "batch": batch,
            "error": None,
            "of_copy": share,
            "busy_share": 0.98,
            **common,
        }
        for batch, share in ((1, 0.6123), (8, 0.5))
    ]
    part = plan.PARTS[4]
    text = screen("time", [Result(part, PASSED, 3.0)], found)
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert (
        "61.2%" in lines["small model, decode of 1"] and "58%" in lines["small model, decode of 1"]
    )
    assert "2.0%" in lines["small model, GPU idle at most"]
    assert lines["large model, decode of 1"].split()[5] == "-"
    assert all(goal.name in text for goal in goals.GOALS)


@pytest.mark.parametrize(("given", "said"), [("abc1", "abc1"), ("", "unknown")])
def test_files_without_a_checkout_can_say_their_commit(given, said, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(bench_rows, "__file__", str(tmp_path / "rows.py"))
    monkeypatch.setenv("STEER_COMMIT", given)
    assert bench_rows.commit() == said


def test_a_line_that_a_kill_cut_off_is_left_out(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n')
    follower = Follower(path)
    with path.open("a") as file:
        file.write('{"a": 2}\n{"a"')
    assert follower.new() == [{"a": 2}]
    with path.open("a") as file:
        file.write(": 3}\n")
    assert follower.new() == [{"a": 3}]


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
