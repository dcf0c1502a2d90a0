"""Every kernel at the shapes of every named model, compiled for sm_90 and held to its limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.config.named_models import NAMED_MODELS
from kernels.aot import registry

ROOT = Path(__file__).parents[2]
# The interpreter is chosen where kernels are imported: compiling needs a process without it.
COMPILED = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=COMPILED, capture_output=True, text=True
    )


def test_all_kernels_of_all_models_hold_their_limits(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    done = run("-m", "bench.kernels", "--aot", f"--json={path}")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found = {(row["op"], row["model"]) for row in rows}
    assert found == {(op, model) for op in registry.OPS for model in NAMED_MODELS}
    assert all(row["spills"] == 0 and not row["failures"] for row in rows)
    assert all(0 <= row["wide_share"] <= 1 for row in rows)
    # fp32 attention is for tests, and only must not spill.
    assert all(row["budget"] > 0 for row in rows if not row["kernel"].endswith("_fp32"))
    assert all(op in done.stdout for op in registry.OPS)


IMPOSSIBLE = """
from dataclasses import replace
from bench.kernel_bench.aot import check_variants, failures, model_shapes, show
from kernels.aot.registry import op_variants

shape = model_shapes(["qwen-1.5b/qwen-32b"])[0]
good = op_variants("silu_mul", shape)[0]
unsigned = {**good.signature}
del unsigned["width"]
rows = check_variants([
    good,
    replace(good, name="registers", registers=8),
    replace(good, name="budget", budget=0.5),
    replace(good, name="narrow", aligned=()),
    replace(good, name="broken", signature=unsigned),
])
rows = [{"model": "any", **row} for row in rows]
show(rows)
print("\\n".join(failures(rows)))
"""


def test_broken_limits_are_named():
    lines = run("-c", IMPOSSIBLE).stdout.splitlines()
    expected = [
        "registers any: ",
        "budget any: ",
        "narrow any: no 16-byte loads",
        "broken any: does",
    ]
    assert len(lines) >= 4
    for start in expected:
        assert any(line.startswith(f"silu_mul {start}") for line in lines), lines


def test_exit_status_of_a_broken_limit():
    code = """
import sys
from dataclasses import replace
from bench import kernels
from kernels.aot import silu_mul
whole = silu_mul.variants
silu_mul.variants = lambda shape: [replace(v, registers=8) for v in whole(shape)]
sys.exit(kernels.main(["--aot", "--op=silu_mul", "--quick"]))
"""
    done = run("-c", code)
    assert done.returncode == 1
    assert "broken limit: silu_mul silu_mul qwen-1.5b: " in done.stderr
    assert done.stderr.count("broken limit") == 2  # a model each


@pytest.mark.parametrize("op", registry.OPS)
def test_modules_have_the_frame(op: str):
    module = registry.load(op)
    assert callable(module.roofline)
    assert callable(module.variants)


def test_unknown_op():
    with pytest.raises(ValueError, match="unknown op 'sort'; known: "):
        registry.load("sort")
