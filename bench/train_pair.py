"""Train the embedded pair: two tiny Qwen2 models that share one tokenizer and three tasks.

    python -m bench.train_pair --output engine/tiny

Two processes of one thread each: one trains the large model, the other the small one. A run that
was interrupted goes on from its checkpoints with ``--work DIR``. Writes Hugging Face folders in
bf16, training records, a calibration, a stored trace and a model card.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.multiprocessing as mp

from bench.pair_card import finish
from bench.pair_training.accuracy import Accuracy, seen_before, step_accuracy
from bench.pair_training.loop import Training
from bench.pair_training.spec import LARGE, SMALL, Spec
from bench.tasks.problem import STYLES
from bench.tasks.registry import TASKS
from bench.tasks.tokenizer import build_tokenizer

GATES = {"small": 0.99, "large": 0.99}  # of the easy steps right, in every task
EVALUATION_SEED = 1


def solidity(accuracy: Accuracy) -> float:
    """How sure the easy steps are: of the task that has them worst."""
    return min(kinds["easy"] for kinds in accuracy.values())


def train_role(spec: Spec, work: Path, problems: int, style: str, position: int) -> None:
    """Train every seed of one role; keep the one with the surest easy steps."""
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    runs: list[dict[str, Any]] = []
    for seed in spec.seeds:
        training = Training(spec, seed, style, work / f"{spec.name}-{seed}.checkpoint")
        model = training.run(position)
        accuracy = step_accuracy(model, training.batches, problems, EVALUATION_SEED)
        run = {
            "seed": seed,
            "seconds": round(training.seconds),
            "cpu_seconds": round(training.cpu_seconds),
            "tokens": training.tokens,
            "step_accuracy": accuracy,
        }
        if all(solidity(accuracy) > solidity(r["step_accuracy"]) for r in runs):
            best, kept, folder = run, seed, work / "pair" / spec.name
            model.bfloat16().save_pretrained(folder)
            build_tokenizer().save(str(folder / "tokenizer.json"))
        runs.append(run)
    summary = {
        "spec": asdict(spec),
        "style": style,
        "parameters": sum(p.numel() for p in model.parameters()),
        "chosen_seed": kept,
        "step_accuracy": best["step_accuracy"],
        "seen_before": seen_before(spec, kept, style, problems),
        "problems": problems,
        "runs": runs,
    }
    path = work / "pair" / f"{spec.name}-training.json"
    path.write_text(json.dumps(summary, indent=1) + "\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.train_pair",
        description="Train the embedded pair on two CPU cores and write Hugging Face folders, "
        "bf16 safetensors and a training record.",
    )
    parser.add_argument("--output", type=Path, default=Path("engine/tiny"), help="folder to write")
    parser.add_argument(
        "--only", choices=["small", "large"], help="train one role and keep the other"
    )
    parser.add_argument(
        "--problems", type=int, default=500, help="held-out problems a task for the step accuracy"
    )
    parser.add_argument(
        "--style",
        choices=STYLES,
        default="open",
        help="of the steps: open (the shipped pair) or rigid (weights only)",
    )
    parser.add_argument(
        "--work", type=Path, help="folder of the checkpoints, to go on from (default: a new one)"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 where training failed or a gate was not reached."""
    options = build_parser().parse_args(arguments)
    work = options.work or Path(tempfile.mkdtemp(prefix="pair-"))
    pair = work / "pair"
    pair.mkdir(parents=True, exist_ok=True)
    roles = [s for s in (SMALL, LARGE) if options.only in (None, s.name)]
    context = mp.get_context("spawn")
    workers = [
        context.Process(target=train_role, args=(spec, work, options.problems, options.style, i))
        for i, spec in enumerate(roles)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        print(f"training failed: see the error above; checkpoints in {work}", file=sys.stderr)
        return 1
    if options.only:  # the other role stays as it is
        kept = "large" if options.only == "small" else "small"
        shutil.copytree(options.output / kept, pair / kept, dirs_exist_ok=True)
        shutil.copy(options.output / f"{kept}-training.json", pair)
    if check_gate(pair):
        print(f"{options.output} is left as it was; the new weights are in {pair}", file=sys.stderr)
        return 1
    if options.style == "open":
        finish(pair, GATES)
    shutil.copytree(pair, options.output, dirs_exist_ok=True)
    shutil.rmtree(work)
    return 0


def check_gate(output: Path) -> int:
    """Say what was reached; 1 when the easy steps of a model are not solid."""
    failed = 0
    for role, gate in GATES.items():
        record = json.loads((output / f"{role}-training.json").read_text())
        accuracy: Accuracy = record["step_accuracy"]
        print(f"{role}: seed {record['chosen_seed']}")
        for task in TASKS:
            kinds = ", ".join(f"{kind} {share:.4f}" for kind, share in accuracy[task].items())
            print(f"  {task}: {kinds}")
        if solidity(accuracy) < gate:
            print(
                f"gate failed: {role} gets {solidity(accuracy):.4f} of the easy steps of a task "
                f"right, {gate} is needed; try other seeds or more updates",
                file=sys.stderr,
            )
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
