"""What ships beside the embedded pair's weights: calibration, a stored trace, the model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.calibrate import calibrate
from bench.evaluate import arithmetic_tests, evaluate
from bench.rows import provenance
from bench.table import render
from engine import Engine, EngineConfig, Steer

CALIBRATION_PROBLEMS = 400
TRACE_PROBLEMS = 100
_CARD = """\
# The embedded pair

Two Qwen2-architecture models that share one tokenizer, trained from scratch by
`python -m bench.train_pair` on two CPU cores. They exist so that the engine can be run, tested and
understood without a download: they solve left-to-right arithmetic modulo 100 and nothing else.

## Task and data

A prompt is a start value and 3 to 8 operations, read strictly from left to right; the trace has one
line an operation (`bench/tasks/arithmetic.py`):

    47+36*7-15?  ->  47+36 / 83*7 / 81-15 / 66

`+` and `-` by 10..99 are easy, `*` by 3, 7 or 9 medium, `*` by 11..99 ending in 1, 3, 7 or 9 hard.
Problems are drawn at random and split by a hash of the prompt (1/16 test, 1/16 calibration, the
rest training), so held-out problems never occur in training. Single steps do: there are only some
22,000 (value, operation) facts. The pair is for studying routing, not generalisation.

The small model saw few hard multiplications on purpose: it must not know everything.

## Models

{models}

Loss after the prompt only; Muon (lr 0.02, momentum .95, decay .05) for hidden matrices, AdamW for
the rest; batch 32, warm-up 100 updates, cosine to 2%, clip 1.0. Weights are rounded to bf16.
The large head has six rows beyond the tokenizer, as the larger Qwen2.5 heads do: padding ids are
masked for real.

## Step accuracy

Teacher-forced on {problems} held-out problems: share of steps with every token right, by the
operation whose result opens the step (`copy` opens with the start value).

{accuracy}

The gate asks for {gate} on easy steps; the kept seed is the best on easy steps, then on medium
ones. Seeds differ much, most on what was rare in training. All that were tried:

{seeds}

## Beside the weights

`calibration.json`: STEER's mixture and tau ({tau}), fitted on {calibration} calibration problems.
`trace.jsonl`: the decisions of policy steer on the first {trace} test problems (mix "mixed", seed
0), to price other pairs with. `*-training.json`: the full training record.

Trained on {machine}, torch {torch}, {date}.
"""


def finish(output: Path, gate: float) -> None:
    """Write calibration, trace and card for the pair in ``output``."""
    off = EngineConfig(prefix_cache=False)
    engine = Engine("tiny", small=output / "small", large=output / "large", config=off)
    calibration = calibrate(
        engine, arithmetic_tests("calibration", CALIBRATION_PROBLEMS), progress=True
    )
    calibration.save(output / "calibration.json")
    trace = output / "trace.jsonl"
    evaluate(engine, Steer(calibration), arithmetic_tests("test", TRACE_PROBLEMS), trace=trace)
    records = [json.loads((output / f"{r}-training.json").read_text()) for r in ("small", "large")]
    where = provenance()
    card = _CARD.format(
        models=_models(records),
        problems=records[0]["problems"],
        accuracy=_accuracy(records),
        gate=gate,
        seeds=_seeds(records),
        tau=calibration.tau,
        calibration=CALIBRATION_PROBLEMS,
        trace=TRACE_PROBLEMS,
        machine=where["machine"],
        torch=where["versions"]["torch"],
        date=where["date"][:10],
    )
    (output / "MODEL_CARD.md").write_text(card)


def _indent(table: str) -> str:
    return "\n".join("    " + line for line in table.splitlines())


def _models(records: list[dict[str, Any]]) -> str:
    header = ("model", "hidden", "layers", "heads/kv", "ff", "parameters", "updates", "mix e/m/h")
    rows = []
    for record in records:
        s = record["spec"]
        mix = "/".join(f"{share:g}" for share in s["mix"])
        rows.append(
            (
                s["name"], str(s["hidden"]), str(s["layers"]), f"{s['heads']}/{s['kv_heads']}",
                str(s["feed_forward"]), f"{record['parameters']:,}", str(s["updates"]), mix,
            )
        )  # fmt: skip
    return _indent(render(header, rows))


def _accuracy(records: list[dict[str, Any]]) -> str:
    kinds = ("copy", "easy", "medium", "hard")
    rows = [
        (r["spec"]["name"], *(f"{r['step_accuracy'][kind]:.4f}" for kind in kinds)) for r in records
    ]
    return _indent(render(("model", *kinds), rows))


def _seeds(records: list[dict[str, Any]]) -> str:
    rows = [
        (
            r["spec"]["name"],
            f"{run['seed']}{' (kept)' if run['seed'] == r['chosen_seed'] else ''}",
            *(f"{run['step_accuracy'][kind]:.4f}" for kind in ("easy", "medium", "hard")),
            str(run["seconds"]),
        )
        for r in records
        for run in r["runs"]
    ]
    return _indent(render(("model", "seed", "easy", "medium", "hard", "seconds"), rows))
