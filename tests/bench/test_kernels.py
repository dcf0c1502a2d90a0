"""``python -m bench.kernels`` on the CPU: rows, exit codes, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch

from bench.kernel_bench import arena_cases, card, case, cases, gpu, reference, rivals
from bench.kernels import main, time_kernels
from bench.rows import RowWriter
from kernels.aot import registry
from kernels.aot.variant import ModelShape
from kernels.reference import layers

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.kernels", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_quick_rows(tmp_path: Path):
    """In an environment that asks for the interpreter, which it must not compile under."""
    path = tmp_path / "rows.jsonl"
    done = run("--quick", "--op=norm", f"--json={path}")
    assert done.returncode == 0, done.stderr[-2000:]
    *compiled, timed = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["kind"], r["model"], r["kernel"]) for r in compiled] == [
        ("aot", model, kernel)
        for model in ("qwen-1.5b", "qwen-32b")
        for kernel in ("rms_norm", "add_rms_norm")
    ]
    assert all(r["registers"] > 0 and r["loads"]["128"] > 0 for r in compiled)
    assert timed["kind"] == "reference"
    assert timed["device"] == "cpu"
    assert 0 < timed["p20_us"] <= timed["p50_us"] <= timed["p80_us"]
    assert all(r["commit"] and r["versions"]["triton"] for r in (*compiled, timed))
    assert "add_rms_norm" in done.stdout
    assert "reference on the CPU" in done.stdout


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--op=sort", "unknown op 'sort'; known: "),
        ("--pair=qwen-9b/qwen-10b", "unknown pair"),
        ("--pair=tiny", "has no named shapes"),
        ("--json=nowhere/rows", "no such folder"),
    ],
)
def test_bad_input(flag: str, message: str, monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # said before anything is compiled
    assert main(["--aot", flag]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert message in told.err
    assert not told.out


@pytest.mark.parametrize("op", reference.REFERENCES)
def test_references(op: str):
    row = reference.time_references([op], 3)[0]
    assert row["p50_us"] > 0
    assert op in reference.show([row])


def test_each_op_has_a_reference():
    assert set(registry.OPS) <= set(reference.REFERENCES)


SMALL = ModelShape("small", 64, 96, 2, 1, 32, 160)
CARD = gpu.Card("a card", "unknown", 3e12, 3.2e12, 8e14, 1.0, 2**26)


ABSOLUTE = {"attention": 0.02, "rope_kv": 0.05, "copy_blocks": 0.0}


def tensors(arguments):
    """Those that a kernel may write to."""
    return [a for a in arguments if isinstance(a, torch.Tensor) and a.dtype == case.DTYPE]


def copied(arguments):
    return [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]


# Contexts that the interpreter gets through; the same numbers on every device.
INTERPRETED = case.CaseMaker(
    device="cuda" if torch.cuda.is_available() else "cpu",
    draws_on="cpu",
    contexts=(64, 192),
    short=((20, 128), (3, 64)),
    prefills=((128, 128), (70, 192)),
    many=(2, 3),
    copied_layers=2,
)


@pytest.mark.parametrize("op", registry.OPS)
@pytest.mark.parametrize("batch", [1, 8])
def test_gpu_cases_compute_what_their_baselines_do(op: str, batch: int):
    """Their arguments fit both, which the machine that times them should not have to find out."""
    torch.manual_seed(batch)
    found = cases.CASES[op](SMALL, batch, INTERPRETED)
    assert found
    for each in found:
        mine = each.inputs()
        theirs = copied(mine)
        ours, expected = each.kernel(*mine), each.baseline(*theirs)
        assert each.op == op and each.roofline.bytes > 0
        close = {"rtol": 0.05 if ABSOLUTE.get(op, 1) else 0.0, "atol": ABSOLUTE.get(op, 0.1)}
        torch.testing.assert_close(ours, expected, **close)
        torch.testing.assert_close(tensors(mine), tensors(theirs), **close)  # written in place
        # What decides whether a case fits, and it is nearly all touched (but for a page's rest).
        size = sum(a.nbytes for a in mine if isinstance(a, torch.Tensor))
        assert size < 1.3 * each.roofline.bytes + 2 * arena_cases.PAGE * SMALL.head_dim * 2 + 400


def test_every_op_has_cases():
    assert tuple(cases.CASES) == registry.OPS


class StillTimer(card.CardTimer):
    """Makes each call once; the times are those that it was given, one a replay."""

    def __init__(self, first: float = 4.0, step: float = 0.0) -> None:
        self.first, self.step = first, step
        self.calls: list[int] = []

    def times(self, calls, replays):
        calls[0]()
        self.calls.append(len(calls))
        return [self.first + self.step * i for i in range(replays)]

    def check(self):
        pass


class LostCard(StillTimer):
    """Answers no more when it is first asked."""

    def check(self):
        raise card.CardLostError("the card answers no more: illegal address")


@pytest.fixture
def no_compiler(monkeypatch):
    """torch.compile, which takes long, gives back what it gets."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def extent(timer=None, **changes):
    """Of cases on this machine's CPU."""
    maker = case.CaseMaker(device="cpu")
    return gpu.Extent(9, maker=maker, timer=timer or StillTimer(), **changes)


def test_cases_of_too_much_memory_are_skipped(capsys):
    large = ModelShape("large", 5120, 27648, 40, 8, 128, 152064)
    found = gpu.fitting_cases(["attention"], [large], CARD, gpu.Extent(9))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped")]
    rows = [each.rows for _, each in found]
    assert rows.count(64) == 3  # decodes of all but the longest context, and a short span
    assert told == [
        "skipped: attention decode large, 64 rows, context 16384: needs 12.1 GiB, at most 8.0",
        "skipped: attention short large, 4096 rows, context 16384: needs 12.4 GiB, at most 8.0",
    ]


def test_what_is_skipped_is_not_measured(no_compiler, capsys):
    """A card whose cache is so large that no case of 64 rows leaves room for cold ones."""
    wide = replace(CARD, l2_bytes=4 * 2**30 - 3 * 1024)
    rows = list(gpu.measure(["norm"], [SMALL], wide, extent()))
    assert {r["rows"] for r in rows} == {1, 8}
    assert capsys.readouterr().err.count("skipped: norm") == 2


@pytest.mark.usefixtures("no_compiler")
def test_gpu_rows_and_table():
    """The bookkeeping of a GPU's rows, with times from nowhere."""
    rows = list(gpu.measure(["norm"], [SMALL], CARD, extent(StillTimer(2.0, 1.0))))
    assert len(rows) == 3 * 2 * 3  # batches, kernels, contestants; too small to be cold
    assert {r["provider"] for r in rows} == {"steer", "torch", "torch.compile"}
    assert all(r["p50_us"] == 6.0 and r["l2"] == "hot" for r in rows)
    first = rows[0]
    assert first["bytes"] == 3 * 64 * 2  # a row read, one written, the weight
    assert first["of_copy_floor"] == pytest.approx(first["bytes"] / 3e12 / 6e-6)
    table = gpu.show(rows, CARD)
    assert "a card" in table
    assert table.count("rms_norm") == 6


@pytest.mark.usefixtures("no_compiler")
def test_gpu_rows_go_round_cold_inputs():
    timer, small_cache = StillTimer(1.0), replace(CARD, l2_bytes=1000)
    rows = list(gpu.measure(["silu_mul"], [SMALL], small_cache, extent(timer)))
    assert {r["l2"] for r in rows if r["rows"] == 1} == {"hot", "cold"}
    assert {r["l2"] for r in rows if r["rows"] == 64} == {"cold"}  # one set is twice the cache
    assert min(timer.calls) >= 40


@pytest.mark.usefixtures("no_compiler")
def test_a_rival_that_fails_is_left_out_with_a_line(capsys):
    """One that raises, one that computes something else, one that does what ours does."""

    def broken(*_):
        raise RuntimeError("no such kernel\nand more")

    def other(gate_up):
        return lambda: layers.silu_mul(gate_up) + 1

    def same(gate_up):
        return lambda: layers.silu_mul(gate_up)

    found = [rivals.Rival("json", "numpy", prepare) for prepare in (broken, other, same)]
    known = {("silu_mul", "silu_mul"): tuple(found)}
    small_cache = replace(CARD, l2_bytes=1000)
    rows = [
        r
        for r in gpu.measure(["silu_mul"], [SMALL], small_cache, extent(rivals=known))
        if r["rows"] == 1
    ]
    told = [e for e in capsys.readouterr().err.splitlines() if "left out" in e and " 1 rows" in e]
    assert len(told) == 2
    assert told[0].endswith("silu_mul silu_mul small, 1 rows: no such kernel")
    assert told[1].endswith("its result is not ours")
    of_rival = [r for r in rows if r["provider"] == "json"]
    assert [r["l2"] for r in of_rival] == ["hot", "cold"]
    assert all(r["version"] == metadata.version("numpy") for r in of_rival)
    assert "json 4.00" in gpu.show(rows, CARD)


NORMS = cases.CASES["norm"]


def failing(*names):
    """Norms of which some raise in their kernel."""

    def fail(*_: object) -> None:
        raise RuntimeError("no such instruction\nand more")

    return {
        "norm": lambda shape, batch, maker: [
            replace(each, kernel=fail) if each.name in names else each
            for each in NORMS(shape, batch, maker)
        ]
    }


@pytest.mark.usefixtures("no_compiler")
def test_a_kernel_of_ours_that_fails_leaves_a_row_and_the_bench_goes_on(capsys, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    chosen = extent(cases=failing("rms_norm"), batches=(1, 2))
    with RowWriter(path) as writer:
        assert time_kernels(["norm"], [SMALL], CARD, chosen, writer) == 1
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lost = [r for r in rows if "error" in r]
    assert [(r["provider"], r["kernel"], r["rows"], r["error"]) for r in lost] == [
        ("steer", "rms_norm", batch, "no such instruction") for batch in (1, 2)
    ]
    assert sum(r["provider"] == "torch" and r["kernel"] == "rms_norm" for r in rows) == 2
    assert sum(r["provider"] == "steer" and "p50_us" in r for r in rows) == 2  # add_rms_norm
    told = capsys.readouterr()
    assert "failed: steer" in told.err and "norm rms_norm small, 1 rows: no such" in told.err
    assert told.out.count("failed") == 2
    with RowWriter(None) as writer:
        assert time_kernels(["norm"], [SMALL], CARD, extent(batches=(1, 2)), writer) == 0


@pytest.mark.usefixtures("no_compiler")
def test_rows_say_what_stands_beside_ours():
    """Which baseline does more work than ours, and which only a part of it."""
    chosen = extent(batches=(1,))
    rows = list(gpu.measure(["skinny_gemm", "lm_head"], [SMALL], CARD, chosen))
    notes = {(r["provider"], r["kernel"].rpartition("_")[2]): r["note"] for r in rows}
    assert "widens" in notes["torch", "fp8"] and "widens" in notes["torch.compile", "fp8"]
    assert "alone" in notes["product", "statistics"]
    assert not any(
        notes[own, kind] for own in ("steer", "torch") for kind in ("bf16", "statistics")
    )
    table = gpu.show(rows, CARD)
    assert "TFLOP/s" in table and table.count("product 4.00") == 1


@pytest.mark.usefixtures("no_compiler")
def test_arguments_that_do_not_fit_cost_only_their_case():
    def full():
        raise torch.OutOfMemoryError("out of memory")

    def some(shape, batch, maker):
        first, second = NORMS(shape, batch, maker)
        return [replace(first, inputs=full), second]

    rows = list(gpu.measure(["norm"], [SMALL], CARD, extent(cases={"norm": some})))
    assert [r["error"] for r in rows if r["kernel"] == "rms_norm"] == ["out of memory"] * 3
    assert "failed" in gpu.show(rows, CARD)
    assert sum("error" not in r for r in rows) == 3 * 3


@pytest.mark.usefixtures("no_compiler")
def test_a_card_that_answers_no_more_ends_the_bench(capsys, tmp_path: Path):
    """What came before is kept; the status says that it is not all."""
    path, chosen = tmp_path / "rows.jsonl", extent(LostCard(), cases=failing("rms_norm"))
    for each in (chosen, extent(LostCard())):  # asked after a failure, and after every case
        with pytest.raises(card.CardLostError):
            list(gpu.measure(["norm"], [SMALL], CARD, each))
    with RowWriter(path) as writer:
        assert time_kernels(["norm"], [SMALL], CARD, chosen, writer) == 1
    (row,) = map(json.loads, path.read_text().splitlines())
    assert row["error"] == "no such instruction"
    assert "stopped: the card answers no more: illegal address" in capsys.readouterr().err


def test_rivals_are_those_of_known_cases():
    known = {(c.op, c.name) for make in cases.CASES.values() for c in make(SMALL, 1, INTERPRETED)}
    assert set(rivals.RIVALS) <= known
    absent = rivals.Rival("no_such_package", "no-such-package", lambda: None)
    assert not absent.installed and absent.version == "unknown"
