"""What `make gpu-lanes` runs, at its smallest and on a simulated card: its times mean nothing."""

from __future__ import annotations

import json

import pytest
import torch

from bench import decode, handoff, overlap, pair
from bench.kernel_bench import card as real_card
from tests.card.backends import references
from tests.card.simulated import simulated_card

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="there is a GPU, no need to simulate"
)

SMALLEST = ("--quick", "--device=cuda", "--layers=1", "--repeats=2")
LANES = "--lanes=latency,throughput"
RUNS = {
    decode: ["--batch=1,4", "--context=64"],
    handoff: ["--backlog=16,64", "--context=64", "--eager=0,32"],
    overlap: ["--requests=2", "--context=64", LANES],
    pair: ["--share=0.4,1", "--concurrency=2", "--lanes=throughput"],
}


@pytest.mark.parametrize("bench", RUNS, ids=lambda bench: bench.__name__)
def test_it_runs(bench, tmp_path, monkeypatch):
    """To the end, with rows and a plot; nothing fails, transformers included."""
    monkeypatch.setattr(real_card, "_GIB", 2**16)
    monkeypatch.setattr(real_card, "_PRODUCT", 32)
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    file, picture = tmp_path / "rows.jsonl", tmp_path / "plot.svg"
    with simulated_card(), references():
        outputs = (f"--json={file}", f"--plot={picture}")
        assert bench.main([*SMALLEST, *RUNS[bench], *outputs]) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows and all(row.get("error") is None for row in rows)
    assert {row["device"] for row in rows} == {"a simulated card"}
    assert picture.read_text().count("<path") > 10
