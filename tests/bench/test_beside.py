"""``--beside``: named models alone, dense and mixtures of experts, priced and simulated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import expert_mixtures
from bench.alone import Alone, read_names
from bench.flops import main as flops
from bench.simulate import main as simulate
from bench.simulation.cards import CARDS
from bench.simulation.ticktimes import AloneRoofline, Roofline
from engine.config.expert_mixtures import NAMED_MIXTURES
from engine.config.pairs import Pair

ROOT = Path(__file__).parents[2]
QUICK = ("--requests=8", "--prompt=40", "--answer=40", "--handoff=0.2,1", "--concurrency=1,4")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# Experts


@pytest.mark.parametrize(("name", "rows"), [("qwen3-30b-a3b", 8), ("gpt-oss-20b", 5)])
def test_coverage_is_what_random_rows_read(name: str, rows: int):
    mixture, draw = NAMED_MIXTURES[name], np.random.default_rng(0)
    assert expert_mixtures.coverage(mixture, 1) == pytest.approx(mixture.chosen / mixture.experts)
    assert expert_mixtures.coverage(mixture, 4096) == pytest.approx(1)
    found = []
    for _ in range(2000):
        chosen = [draw.permutation(mixture.experts)[: mixture.chosen] for _ in range(rows)]
        found.append(len(np.unique(np.concatenate(chosen))) / mixture.experts)
    assert expert_mixtures.coverage(mixture, rows) == pytest.approx(np.mean(found), rel=0.01)


def test_a_mixture_by_hand():
    model = Alone.named("qwen3-30b-a3b")
    expert, attention, router = 3 * 2048 * 768, 2048 * 128 * (2 * 32 + 2 * 4), 2048 * 128
    head, norms = 151936 * 2048, 48 * (2 * 2048 + 2 * 128) + 2048
    assert model.price.row == 2 * 48 * (attention + router + 8 * expert)
    assert (model.price.key, model.price.head) == (2 * 48 * 2 * 32 * 128, 2 * head)
    always, experts = model.read_bytes(2)
    assert experts == 2 * 48 * 128 * expert
    assert always == 2 * (48 * (attention + router) + head + norms)
    assert model.resident_bytes(1) == 48 * 128 * expert + always / 2 + head
    # A row alone reads the 3.3 billion parameters that are active, less the embedding.
    assert (always + experts / 16) / 2 + head == pytest.approx(3.35e9, rel=0.01)


def test_experts_of_4_bits_stay_so_whatever_the_others_are_in():
    model = Alone.named("gpt-oss-120b")
    assert model.resident_bytes(2) == model.resident_bytes(1) == pytest.approx(65.2e9, rel=0.01)
    assert model.weights("fp8") == model.weights("bf16") == "4-bit experts, else bf16"
    active = model.price.row / 2 + model.price.head / 2
    assert active == pytest.approx(5.13e9, rel=0.01)  # as its makers count


def test_tick_times_of_a_mixture_by_hand():
    model = Alone.named("qwen3-30b-a3b")
    times = AloneRoofline(model, CARDS["h100"], "bf16", efficiency=0.5, overhead=1e-3)
    always, experts = model.read_bytes(2)
    kv = 48 * 2 * 4 * 128 * 2
    for batch, span in ((1, 1), (8, 1), (2, 4)):
        read = always + experts * (1 - (15 / 16) ** (batch * span)) + kv * batch * (500 + span)
        found = times.seconds(1, batch, 500, span)
        assert found == pytest.approx(read / 3.35e12 / 0.5 + 1e-3)


def test_a_dense_model_alone_takes_what_it_takes_in_a_pair():
    shapes = Pair.named("qwen-1.5b/qwen-32b").shapes
    for weights in ("bf16", "fp8"):
        pair = Roofline(shapes, CARDS["h100"], weights, 0.7, 2e-4)
        alone = AloneRoofline(Alone.named("qwen-32b"), CARDS["h100"], weights, 0.7, 2e-4)
        for tick in ((1, 300, 1), (64, 2000, 1), (1, 2048, 2048)):
            assert alone.seconds(1, *tick) == pytest.approx(pair.seconds(1, *tick))


def test_lists_of_names():
    assert read_names(None) == []
    assert [m.name for m in read_names("qwen-7b, gpt-oss-20b,qwen-7b")] == [
        "qwen-7b",
        "gpt-oss-20b",
    ]


# Pricing


def test_priced_beside_a_pair(tmp_path: Path, capsys):
    path = tmp_path / "rows.jsonl"
    beside = "--beside=qwen-32b,qwen3-30b-a3b,qwen3-235b-a22b"
    assert flops(["--model-pair=qwen-1.5b/qwen-32b", beside, f"--json={path}"]) == 0
    small, large, _, _, same, little, big = read(path)
    assert [r["policy"] for r in (same, little, big)] == [
        "qwen-32b alone",
        "qwen3-30b-a3b alone",
        "qwen3-235b-a22b alone",
    ]
    for accounting in ("decode", "catchup", "reprefill"):
        field = f"flops_{accounting}"
        assert same[field] == 1.0
        assert small[field] < little[field] < big[field] < 1
    assert same["flops_absolute"] == large["flops_absolute"]
    assert little["weight_bytes"] == 2 * 30_532_122_624 and little["fits_80_gb"] is True
    assert big["fits_80_gb"] is False and big["large_step_share"] is None
    out = capsys.readouterr().out
    assert "qwen3-30b-a3b alone: 30.5 billion parameters, 61.1 GB of weights (bf16), less" in out
    assert "more than a card of 80 GB holds" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model-pair=qwen-1.5b/qwen-32b --beside=gpt-9", "--beside: unknown model 'gpt-9'; kno"),
        ("--model-pair=qwen-1.5b/qwen-32b --beside=", "--beside: unknown model ''; known: qwen-0"),
        ("--beside=qwen-7b", "--beside prices a pair without weights; this pair can be run"),
    ],
)
def test_bad_flags_of_pricing(flags: str, message: str, capsys):
    assert flops(flags.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


# Simulating


def test_simulated_beside_a_pair(tmp_path: Path, capsys):
    path = tmp_path / "rows.jsonl"
    names = "qwen-32b,qwen3-30b-a3b,gpt-oss-120b,qwen3-235b-a22b"
    assert simulate([*QUICK, f"--beside={names}", f"--json={path}"]) == 0
    rows = read(path)
    alone = [row for row in rows if "alone" in row]
    assert len(rows) - len(alone) == 4 and all(row["simulated"] for row in rows)
    assert [(r["alone"], r.get("concurrency")) for r in alone] == [
        *((name, load) for name in names.split(",")[:3] for load in (1, 4)),
        ("qwen3-235b-a22b", None),
    ]
    assert [r["fits"] for r in alone] == [True] * 6 + [False]
    at_once = {(r.get("alone"), r["concurrency"]): r for r in alone[:-1]}
    large = next(r for r in rows if r["handoff"] == 1 and r["concurrency"] == 1)
    dense, mixture = at_once["qwen-32b", 1], at_once["qwen3-30b-a3b", 1]
    assert dense["tokens_per_second"] == pytest.approx(large["tokens_per_second"])
    assert dense["memory_gib"] > large["memory_gib"]  # no small model beside it
    assert mixture["tokens_per_second"] > 5 * dense["tokens_per_second"]
    # More rows read more experts, so that the mixture gains less from company.
    assert mixture["experts_read"] == pytest.approx(1 / 16)
    assert at_once["qwen3-30b-a3b", 4]["experts_read"] > 2 / 16
    assert dense["experts_read"] is None and at_once["gpt-oss-120b", 1]["weights_gib"] < 62
    out = capsys.readouterr().out
    assert "qwen-1.5b/qwen-32b, 20% handed over" in out and "Speed only" in out
    line = next(line for line in out.splitlines() if line.startswith("qwen3-235b-a22b alone"))
    assert "does not fit" in line and "437.9" in line


def test_open_loops_and_fp8_have_models_beside(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    flags = ("--requests=8", "--prompt=40", "--answer=40", "--handoff=0.2", "--rate=1,2")
    beside = "--beside=qwen3-30b-a3b,gpt-oss-20b"
    assert simulate([*flags, beside, "--weights=fp8", f"--json={path}"]) == 0
    alone = [row for row in read(path) if "alone" in row]
    assert [(r["alone"], r["rate"]) for r in alone] == [
        (name, rate) for name in ("qwen3-30b-a3b", "gpt-oss-20b") for rate in (1, 2)
    ]
    assert [r["weights"] for r in alone] == ["fp8"] * 2 + ["4-bit experts, else bf16"] * 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--beside=gpt-9", "--beside: unknown model 'gpt-9'; known: qwen-0.5b, "),
        (
            "--beside=qwen-7b --memory=11 --model-pair=qwen-1.5b/qwen-32b --prompt=1e6",
            "error: a request of 1.00051e+06 tokens, the context is 32768",
        ),
        (
            "--beside=qwen-72b --weights=fp8 --memory=9",
            "--beside qwen-72b: --memory 9: its weights le",
        ),
        (
            "--model-pair=llama-1b/llama-8b --prompt=42000 --answer=1500 --spread=0 "
            "--beside=qwen3-8b,qwen3-30b-a3b",
            "--beside qwen3-8b: a request of 43500 tokens, the context is 40960: lower --prompt",
        ),
        (
            "--model-pair=llama-1b/llama-8b --prompt=38000 --answer=1500 --requests=64 "
            "--beside=qwen3-30b-a3b",
            "--beside qwen3-30b-a3b: a request of ",
        ),
    ],
)
def test_bad_flags_of_the_simulator(flags: str, message: str, capsys):
    assert simulate(flags.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_lane_policies_are_told_apart_where_there_are_several(capsys):
    loads = ("--requests=8", "--prompt=40", "--answer=40", "--handoff=0.2", "--concurrency=4")
    pair = "qwen-1.5b/qwen-32b, 20% handed over"
    for lanes in (["latency"], ["latency", "throughput"]):
        assert simulate([*loads, f"--lanes={','.join(lanes)}", "--beside=qwen-7b"]) == 0
        out = capsys.readouterr().out.splitlines()
        names = [line.split("  ")[0] for line in out if line.startswith(pair)]
        assert names == ([f"{pair}, {each} lanes" for each in lanes] if lanes[1:] else [pair])
        assert sum(line.startswith("qwen-7b alone") for line in out) == 1


def test_a_table_is_of_the_pair_alone(tmp_path: Path, capsys):
    table = tmp_path / "times.csv"
    assert simulate([*QUICK, f"--save-table={table}"]) == 0
    capsys.readouterr()
    assert simulate([f"--table={table}", "--beside=qwen-7b"]) == 2
    assert "--beside goes with the roofline, not with --table" in capsys.readouterr().err


# The documented comparison


def test_the_documented_table_is_of_the_rows():
    """Every figure of it, and every model's weights."""
    page = (ROOT / "docs" / "performance.md").read_text()
    section = page.split("# Why not just one mixture of experts?")[1].split("\n# ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"][2:]
    rows = {
        (weights, r.get("alone") or r["handoff"], r.get("concurrency")): r
        for weights in ("bf16", "fp8")
        for r in read(ROOT / "bench" / "results" / f"simulate-beside-{weights}.jsonl")
    }
    shares = {"the pair, 10% of steps handed over": 0.1, "the pair, 20%": 0.2}
    shares["qwen3-32b, alone beside qwen3-0.6b"] = 1
    seen = 0
    for who, weights, size, *figures in lines:
        who = shares.get(who, who.removesuffix(" alone"))
        formats = weights.split(" / ") if weights[0] != "4" else ["bf16", "fp8"]
        for form, gb in zip(formats, (size.split(" / ") * 2), strict=False):
            loads = (1, 8, 32, 128) if figures[0] != "does not fit" else (None,)
            for load, figure in zip(loads, figures, strict=False):
                row = rows[form, who, load]
                assert f"{row['weights_gib'] * 2**30 / 1e9:.1f}" == gb, (form, who)
                told = "does not fit" if load is None else f"{row['tokens_per_second']:,.0f}"
                assert told == figure, (form, who, load)
                seen += 1
    assert seen == len(rows)
