"""The files that ship with the embedded pair's weights: calibration, stored trace, model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.calibrate import calibrate
from bench.evaluate import drawn_rows, evaluate, task_tests
from bench.pair_training.spec import ROLES
from bench.rows import provenance
from bench.table import render
from bench.tasks.registry import ALL, TASKS
from engine import Calibration, Engine, EngineConfig, Speculate, Steer

CALIBRATION_PROBLEMS = 600
TRACE_PROBLEMS = 120
_KINDS = ("copy", "easy", "medium", "hard", "problem")
_CARD = """\
# The embedded pair

Two Qwen2-architecture models that share one tokenizer, trained from scratch with
`python -m bench.train_pair` on two CPU cores{parts}. They exist so that the engine can be run,
tested and understood without a download: they solve three small tasks and nothing else.

## Tasks and data

Prompts and one example of each trace (`bench/tasks/`; steps are separated by blank lines):

    arithmetic  47+36*7-15?                     47+36 / 83*7 / 81-15 / 66
    hops        b>da@dc>aa>bd>cc@b.../aA>B>>C<  aA>. / bB>>. / cC<. / d
    planning    a>bd>xb>cc>gg>!b>d/ag           b. / c. / g. / !

Arithmetic is read from left to right, modulo 100: `+` and `-` by 10..99 are easy, `*` by 3, 7 or 9
medium, `*` by 11..99 ending in 1, 3, 7 or 9 hard. Hops: `>` (comes next) and `@` (likes) are facts
in the prompt and easy, `<` (comes before) is a fact read backwards and medium, `>>` (second next)
puts two facts together and is hard. Planning: a move is hard at a fork whose other way is a dead
end.

A chat template comes with the pair, for clients that send conversations: it writes the last
question and nothing else, as the pair has learned no conversation.

Problems are drawn at random and split by a hash of the prompt (1/16 test, 1/16 calibration, the
rest training), so held-out problems never occur in training. Single steps may. Of the test sets'
steps, this share had occurred in the training of each model, with all that their result depends on
(the value and the operation; all facts, the person and the relation; all roads, town and goal):

{seen}

So arithmetic can be recalled: there are only some 22,000 (value, operation) facts. Hops and
planning cannot: each prompt brings facts of its own. The pair is for studying routing, not
generalisation. The small model saw few hard steps on purpose: it must not know everything.

## Models

Each model is joined of two halves that were trained apart and share no symbol but the end of
sequence: `numbers` learned arithmetic, `graphs` hops and planning. Every matrix of the joined model
is block diagonal, every symbol embeds in one half and the other half holds zeros
(`bench/pair_training/join.py`), so half of its weights are zeros: one model trained on everything
could be smaller, but needs several times the updates.

{models}

Shares of the batches and of easy/medium/hard steps in them:

{data}

Loss after the prompt only; Muon (lr 0.02, momentum .95, decay .05) for hidden matrices, AdamW for
the rest; batch 32, warm-up 100 updates, a constant rate, then a cosine to 2% (over the `last`
updates), clip 1.0. Hops and planning have at most four steps in the first {short} updates. The
first heads of the first layer of the graph halves start out looking a fixed number of tokens back
(`bench/pair_training/model.py`). The large graphs half grows out of the small one's first updates
(`grow.py`): its new layer attends as the last old one does, and for hops its second layer is also
taught what a single look-up finds, the person between. Without either it only guesses at `>>`.
Weights are rounded to bf16. The large head has six rows beyond
the tokenizer, as the larger Qwen2.5 heads do: padding ids are masked for real.
{origins}
## Step accuracy

Teacher-forced on {problems} held-out problems a task, mix "hard": share of steps with every token
right, by what must be worked out to open the step (`copy` repeats the prompt), and of problems with
every step right.

{accuracy}

The gate asks for {gate} of the easy steps in every task; of several seeds of a half the one with
the surest easy steps is kept. All that were tried with this recipe, worst task of the half:

{seeds}

## Beside the weights

`calibration.json`: STEER's mixture and tau ({tau}), fitted on {calibration} calibration problems, a
third of each task. `trace.jsonl`: the decisions of policy steer on the first {trace} test problems
(all tasks in turn, mix "mixed", seed 0), to price other pairs with. `speculate-trace.jsonl`: the
same of policy speculate. `*-training.json`: the full training record.

Seconds of `large, graphs` are without those of the small half that it grew out of.

Trained on {machine}, torch {torch}, {date}.
"""


def finish(output: Path, gates: dict[str, float]) -> None:
    """Write calibration, trace and card for the pair in ``output``."""
    room = drawn_rows(["speculate"], EngineConfig.max_sequences)
    off = EngineConfig(prefix_cache=False, max_drawn_rows=room)
    engine = Engine("tiny", small=output / "small", large=output / "large", config=off)
    calibration = calibrate(
        engine, task_tests("calibration", CALIBRATION_PROBLEMS, task=ALL), progress=True
    )
    calibration.save(output / "calibration.json")
    write_traces(engine, calibration, output)
    records = [json.loads((output / f"{r}-training.json").read_text()) for r in ROLES]
    where = provenance()
    card = _CARD.format(
        seen=_seen(records),
        models=_models(records),
        data=_data(records),
        short=records[0]["halves"][1]["spec"]["short"],
        origins=_origins(records),
        parts=", in parts" if _origins(records) else "",
        problems=records[0]["problems"],
        accuracy=_accuracy(records),
        gate=" and ".join(f"{gate} ({role})" for role, gate in gates.items()),
        seeds=_seeds(records),
        tau=calibration.tau,
        calibration=CALIBRATION_PROBLEMS,
        trace=TRACE_PROBLEMS,
        machine=where["machine"],
        torch=where["versions"]["torch"],
        date=where["date"][:10],
    )
    (output / "MODEL_CARD.md").write_text(card)


def write_traces(engine: Engine, calibration: Calibration, output: Path) -> None:
    """The traces that other pairs are priced from."""
    tests = task_tests("test", TRACE_PROBLEMS, task=ALL)
    for name, policy in (("trace", Steer(calibration)), ("speculate-trace", Speculate())):
        evaluate(engine, policy, tests, trace=output / f"{name}.jsonl")


def _indent(table: str) -> str:
    return "\n".join("    " + line for line in table.splitlines())


def _halves(records: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{role}, {half['spec']['name']}", half)
        for role, record in zip(ROLES, records, strict=True)
        for half in record["halves"]
    ]


def _seen(records: list[dict[str, Any]]) -> str:
    rows = []
    for role, record in zip(ROLES, records, strict=True):
        seen = {
            task: share for half in record["halves"] for task, share in half["seen_before"].items()
        }
        rows.append((role, *(f"{seen[task]:.4f}" for task in TASKS)))
    return _indent(render(("model", *TASKS), rows))


def _models(records: list[dict[str, Any]]) -> str:
    header = ("model", "hidden", "layers", "heads/kv", "ff", "parameters", "updates", "last")
    rows: list[tuple[str, ...]] = []
    for name, half in _halves(records):
        s = half["spec"]
        rows.append(
            (
                name,
                str(s["hidden"]),
                str(s["layers"]),
                f"{s['heads']}/{s['kv_heads']}",
                str(s["feed_forward"]),
                "",
                f"{s['updates']:,}",
                f"{s['decay']:,}",
            )
        )
    for role, r in zip(ROLES, records, strict=True):
        shape = (r["hidden"], r["layers"], f"{r['heads']}/{r['heads']}", r["feed_forward"])
        rows.append((role, *(str(n) for n in shape), f"{r['parameters']:,}", "", ""))
    return _indent(render(header, rows))


def _data(records: list[dict[str, Any]]) -> str:
    rows = [
        (name, task, f"{share:g}", "/".join(f"{kind:g}" for kind in half["spec"]["mixes"][task]))
        for name, half in _halves(records)
        for task, share in half["spec"]["shares"].items()
    ]
    return _indent(render(("half", "task", "share", "easy/medium/hard"), rows))


def _origins(records: list[dict[str, Any]]) -> str:
    """A paragraph on each half that this run did not train itself."""
    notes = {half["origin"]: None for _, half in _halves(records) if "origin" in half}
    return "".join(f"\n{note}\n" for note in notes)


def _accuracy(records: list[dict[str, Any]]) -> str:
    rows = []
    for role, record in zip(ROLES, records, strict=True):
        for task in TASKS:
            accuracy = record["step_accuracy"][task]
            shares = [f"{accuracy[kind]:.4f}" if kind in accuracy else "-" for kind in _KINDS]
            rows.append((f"{role}, {task}", *shares))
    return _indent(render(("model", *_KINDS), rows))


def _seeds(records: list[dict[str, Any]]) -> str:
    rows = []
    for name, half in _halves(records):
        for run in half["runs"]:
            kept = " (kept)" if run["seed"] == half["chosen_seed"] else ""
            tasks = run["step_accuracy"].values()
            rows.append(
                (
                    f"{name}, seed {run['seed']}{kept}",
                    *(f"{min(accuracy[kind] for accuracy in tasks):.4f}" for kind in _KINDS[1:4]),
                    str(run["cpu_seconds"] or "-"),
                    str(run["seconds"]),
                )
            )
    return _indent(render(("half", *_KINDS[1:4], "CPU s", "wall s"), rows))
