"""decode, handoff, overlap and pair, each at its smallest through the code that a card runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bench import decode, handoff, overlap, pair
from bench.lanes.options import Options
from bench.lanes.switches import flipped, turned
from bench.simulation.table import read_table
from engine import EngineConfig, SteerError
from engine.device.devices import DTYPES
from engine.device.kv_arena import ArenaGeometry
from engine.device.memory_budget import CardMemory, arena_slabs, weight_bytes, workspace_bytes

SMALLEST = ("--quick", "--device=cpu", "--layers=1", "--repeats=2")
BENCHES = (decode, handoff, overlap, pair)


def rows_of(bench: ModuleType, path: Path, *arguments: str) -> list[dict[str, Any]]:
    file, picture = path / "rows.jsonl", path / "plot.svg"
    assert bench.main([*SMALLEST, *arguments, f"--json={file}", f"--plot={picture}"]) == 0
    assert picture.read_text().count("<path") > 10
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        assert row["commit"] and row["date"] and row["versions"]["torch"]
        assert row["load_format"] == "dummy" and row["copy_bandwidth"] > 0
        assert row["command"].startswith(f"python -m {bench.__name__} --quick")
        assert "accuracy" not in row
        nothing = None if row.get("provider", "steer") != "steer" else [0, 0]
        assert row["captures"] == row["misses"] == nothing
    return rows


def test_decode(tmp_path: Path, capsys):
    rows = rows_of(decode, tmp_path, "--batch=1,60", "--context=64", "--arena-tokens=2560")
    cells = {(r["provider"], r["model"], r["batch"]) for r in rows}
    assert cells == {
        *(("steer", model, 1) for model in ("small", "large")),
        ("steer", "small", 60),
        *(("transformers", model, 1) for model in ("small", "large")),
        ("transformers", "small", 60),
    }
    for row in rows:
        assert row["error"] is None
        assert row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        assert row["tokens_per_second"] == pytest.approx(1e3 * row["batch"] / row["p50_ms"])
        reached = 1e3 * row["bytes"] / row["p50_ms"]
        assert row["of_copy"] == pytest.approx(reached / row["copy_bandwidth"])
        assert row["provider_version"][0].isdigit()
        assert (row["in_turn_p50_ms"] is None) == (row["provider"] != "steer")
        assert row["engine_plans_ahead"] is (False if row["provider"] == "steer" else None)
    told = capsys.readouterr()
    assert "skipped: large, 60 x 64: " in told.err and "made-up weights" in told.out


GPT_FAST = """
import torch


class ModelArgs:
    def __init__(self, **settings):
        self.settings = settings


class Transformer(torch.nn.Module):
    max_batch_size = max_seq_length = -1

    def __init__(self, config):
        super().__init__()
        if config.settings["n_head"] == {heads}:
            raise ValueError("cannot be built\\nand here are pages of it")
        self.layer = torch.nn.Linear(4, config.settings["vocab_size"])

    def setup_caches(self, batch, length):
        self.batch = batch

    def forward(self, idx, input_pos):
        if self.batch == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.layer(torch.zeros(*idx.shape, 4))
"""


@pytest.mark.parametrize("heads", [0, 4])
def test_a_peer_that_fails_is_a_row(tmp_path: Path, capsys, heads: int):
    """In one cell, or where it is built: named, and the others go on."""
    (tmp_path / "model.py").write_text(GPT_FAST.format(heads=heads))
    given = ("--batch=1,2,4", "--context=64", f"--gpt-fast={tmp_path}")
    rows = [r for r in rows_of(decode, tmp_path, *given) if r["provider"] == "gpt-fast"]
    assert [(r["model"], r["batch"]) for r in rows] == [
        (model, batch) for model in ("small", "large") for batch in (1, 2, 4)
    ]
    failed = [r for r in rows if r["error"] is not None]
    assert len(failed) == (6 if heads else 2)
    for row in failed:
        assert row["p50_ms"] is row["of_copy"] is row["tokens_per_second"] is None
        expected = (
            "ValueError: cannot be built" if heads else "OutOfMemoryError: CUDA out of memory"
        )
        assert row["error"] == expected
    told = capsys.readouterr()
    assert told.err.count("failed: gpt-fast, small, 2 x 64: ") == 1
    assert told.out.count("gpt-fast") == 6


def test_handoff(tmp_path: Path):
    rows = rows_of(handoff, tmp_path, "--backlog=100", "--context=64", "--eager=0,32")
    assert [(r["to"], r["eager"], r["ticks"]) for r in rows] == [
        ("large", 0, 1),
        ("small", 0, 1),
        ("large", 32, 1),
        ("small", 32, 1),
    ]
    assert [r["rows_at_boundary"] for r in rows[:2]] == [101, 100]
    for lazy, eager in zip(rows[:2], rows[2:], strict=True):
        assert eager["rows_at_boundary"] <= 34 and eager["rows_read_along"] >= 66
        assert lazy["over_decode"] == pytest.approx(lazy["p50_ms"] / lazy["decode_ms"])


def test_overlap(tmp_path: Path):
    (row,) = rows_of(overlap, tmp_path, "--requests=4", "--context=20")
    assert row["small_ticks"] == row["large_ticks"] == 2
    reached = row["bytes"] / row["seconds"]
    assert row["of_read"] == pytest.approx(reached / row["read_bandwidth"])
    for role in ("small", "large"):
        ratio = row[f"{role}_together_ms"] / row[f"{role}_alone_ms"]
        assert row[f"{role}_inflation"] == pytest.approx(ratio)


def test_pair(tmp_path: Path):
    times = tmp_path / "times.csv"
    small = ("--lanes=throughput,latency", "--concurrency=1,2", "--share=0.4,1", "--rounds=1")
    rows = rows_of(pair, tmp_path, *small, "--ablate-concurrency=2", f"--save-table={times}")
    ticks, runs, ablations = ([r for r in rows if r["kind"] == k] for k in KINDS)
    table = read_table(times)
    for tick in ticks:
        place = tick["batch"], tick["context"], tick["span"]
        assert table.seconds(tick["model"] == "large", *place) == pytest.approx(tick["us"] / 1e6)
    assert [(r["lanes"], r["concurrency"], r["share"]) for r in runs] == [
        (lanes, c, share)
        for lanes in ("latency", "throughput")
        for c in (1, 2)
        for share in (1, 0.4)
    ]
    for row in runs:
        assert row["large_token_share"] == row["scheduled_share"]
        if row["lanes"] == "latency":  # others learn from the load, and the engine has run before
            assert row["ticks"] == row["replay_ticks"]
        assert row["over_replay"] == pytest.approx(row["seconds"] / row["replay_seconds"])
        assert (row["ideal_seconds"] is None) == (row["concurrency"] > 1)
    assert [r["speedup"] for r in runs if (r["lanes"], r["share"]) == ("latency", 1)] == [1, 1]
    assert ablations[0]["switch"] == "none" and len(ablations) > 2


KINDS = ("tick", "run", "ablation")


def test_a_device_for_each_model(tmp_path: Path):
    """The rows are those of one device, here of a CPU."""
    smallest = ("--quick", "--devices=cpu, cpu", "--layers=1", "--repeats=2", "--requests=4")
    file = tmp_path / "rows.jsonl"
    assert overlap.main([*smallest, f"--json={file}"]) == 0
    (row,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert row["small_ticks"] == row["large_ticks"] == 2 and row["threads"]


@pytest.mark.parametrize("bench", BENCHES)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pair=tiny"], "--pair: no shapes for 'tiny'; known: dummy-tiny, "),
        (["--device=tpu"], "--device: unknown device 'tpu'; known: cpu, cuda"),
        (["--devices=cpu"], "--devices: devices must name one for each of the two models, got"),
        (["--devices=cpu,tpu"], "--devices: unknown device 'tpu'; known: auto, cpu, cuda, cuda:N"),
        (["--devices=cpu,cpu", "--device=cpu"], "--devices names both models' devices: leave"),
        (["--dtype=int8"], "--dtype: unknown 'int8'; known: "),
        (["--layers=0"], "--layers: expected a whole number from 1 on, got '0'"),
        (["--repeats=1"], "--repeats: expected a whole number from 2 on, got '1'"),
        (["--load-format=gguf"], "--load-format: unknown 'gguf'; known: safetensors, dummy"),
        (["--load-format=safetensors"], "needs --small PATH and --large PATH"),
        (["--small=a", "--large=b", "--layers=2"], "--layers goes with made-up weights"),
        (["--quantise=int3"], "--quantise: unknown 'int3'; known: int4, fp8"),
        (["--small=a", "--large=b", "--quantise=fp8"], "--quantise goes with made-up weights"),
        (["--memory-fraction=2"], "--memory-fraction: expected a number from 0.01 up to 1, got"),
        (["--json=nowhere/rows"], "no such folder"),
        (["--plot=picture"], "ends in .png, .svg, .pdf"),
        (["--sort"], "unrecognized arguments: --sort"),
    ],
)
def test_bad_input(bench: ModuleType, arguments: list[str], message: str, capsys):
    assert bench.main(["--quick", *arguments]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and message in told.err
    assert told.err.count("\n") == 1 and not told.out


@pytest.mark.parametrize(
    ("bench", "argument", "message"),
    [
        (decode, "--batch=1,x", "--batch: expected a whole number from 1 on, got 'x'"),
        (decode, "--gpt-fast=bench", "no model.py there; expected a checkout of gpt-fast"),
        (handoff, "--eager=-1", "--eager: expected a whole number from 0 on, got '-1'"),
        (overlap, "--requests=3", "half of them go to each model: 3 is odd"),
        (overlap, "--lanes=fast", "--lanes: unknown lane policy 'fast'"),
        (pair, "--share=1.5", "--share: expected a number from 0 up to 1, got '1.5'"),
        (pair, "--step=99", "--step: 99 is longer than the answer of 20"),
        (pair, "--runs=0.5", "--runs: expected 0, or 1 and more"),
        (pair, "--together=0", "--together: expected a number from 0.01 up to 2, got '0'"),
        (pair, "--arena-tokens=64", "raise --arena-tokens"),
    ],
)
def test_bad_values(bench: ModuleType, argument: str, message: str, capsys):
    assert bench.main(["--quick", "--device=cpu", argument]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_no_card(capsys):
    assert decode.main(["--device=cuda"]) == 2
    assert "PyTorch sees no NVIDIA GPU here; use --device cpu" in capsys.readouterr().err


def test_another_gpt_fast_is_refused(tmp_path: Path):
    (tmp_path / "model.py").write_text(
        "class Transformer:\n    def forward(self, mask, idx, input_pos): ...\n"
    )
    assert decode.main(["--quick", f"--gpt-fast={tmp_path}"]) == 2
    with pytest.raises(SteerError, match=r"forward\('self', 'mask', .*is not that of commit"):
        decode.check_gpt_fast(tmp_path)


GIB = 2**30


def on_a_card(bench: ModuleType) -> Options:
    """A bench's defaults where there is one."""
    options: Options = bench.command_line()
    options.parse(["--device=cpu"])
    options.scale = "cuda"
    return options


def fit(options: Options, config: EngineConfig, total: float) -> None:
    """Weights, workspaces and arena fit a card of so many GiB, one of which is taken; or raises."""
    shapes, size = options.pair_asked().shapes, DTYPES[options.dtype].itemsize
    geometry = ArenaGeometry.of(shapes, config, size)
    needed = {
        "weights": sum(weight_bytes(shape, size) for shape in shapes),
        "workspaces": sum(workspace_bytes(shape, config, size) for shape in shapes),
    }
    free = int((total - 1) * GIB)
    card = CardMemory("a card", int(total * GIB), free, config.memory_fraction)
    arena_slabs(card, needed, geometry.slab_bytes, 64, geometry.slabs)


@pytest.mark.parametrize("bench", BENCHES)
@pytest.mark.parametrize("total", [79.1, 139.0])
def test_defaults_fit_a_card(bench: ModuleType, total: float):
    """Of 80 GB (79.1 GiB) and of 141 GB."""
    options = on_a_card(bench)
    fit(options, options.config(), total)
    # The fraction that engines have by themselves leaves other programs room, and would not do.
    if total < 80:
        with pytest.raises(SteerError, match="would fit"):
            fit(options, replace(options.config(), memory_fraction=0.92), total)


def test_ablations_fit_a_card():
    """Each switch of bench.pair turned, on 80 GB; with as many sequences as run, not as may run."""
    options = on_a_card(pair)
    config, at_once = options.config(), options.whole("ablate_concurrency")
    for name, value in flipped(config, True, options.whole("step")).items():
        fit(options, replace(config, max_sequences=at_once, **turned(name, value)), 79.1)
    with pytest.raises(SteerError, match="would fit"):
        fit(options, replace(config, fused_sampling=False), 79.1)


@pytest.mark.parametrize("bench", BENCHES)
def test_help_teaches(bench: ModuleType, capsys):
    with pytest.raises(SystemExit) as ended:
        bench.main(["--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert told.count(f"python -m {bench.__name__}") > 2 and "(default: " in told
