"""Train the embedded pair: two tiny Qwen2 models that share one tokenizer and three tasks.

    python -m bench.train_pair --output engine/tiny

Two processes of one thread each: one trains the large model, the other the small one. Each model
is joined of two halves: one learns arithmetic, one hops and planning. A run that was interrupted
goes on from its checkpoints with ``--work DIR``. Writes Hugging Face folders in bf16, training
records, a calibration, a stored trace and a model card.
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
from transformers import Qwen2ForCausalLM

from bench.pair_card import finish
from bench.pair_training.accuracy import Accuracy, solidity, step_accuracy
from bench.pair_training.batches import Batches
from bench.pair_training.chat_template import CHAT_TEMPLATE
from bench.pair_training.join import join, silence
from bench.pair_training.loop import Training
from bench.pair_training.seen import seen_before
from bench.pair_training.spec import ROLES, Spec
from bench.tasks.problem import STYLES
from bench.tasks.registry import TASKS
from bench.tasks.tokenizer import build_tokenizer

GATES = {"small": 0.99, "large": 0.99}  # of the easy steps right, in every task
EVALUATION_SEED = 1
_TEXTS = 200  # on which value biases are turned into weights


def train_half(
    spec: Spec, role: str, work: Path, problems: int, style: str, position: int
) -> tuple[Qwen2ForCausalLM, dict[str, Any]]:
    """Train every seed of one half; the one with the most accurate easy steps, and the record."""
    runs: list[dict[str, Any]] = []
    for seed in spec.seeds:
        training = Training(spec, seed, style, work / f"{role}-{spec.name}-{seed}.checkpoint")
        training.run(position)
        model = training.model
        model.train(False)
        accuracy = step_accuracy(model, training.batches, problems, EVALUATION_SEED, spec.shares)
        run = {
            "seed": seed,
            "seconds": round(training.seconds),
            "cpu_seconds": round(training.cpu_seconds),
            "tokens": training.tokens,
            "step_accuracy": accuracy,
        }
        if all(solidity(accuracy) > solidity(r["step_accuracy"]) for r in runs):
            best, kept = model, seed
        runs.append(run)
    seen = seen_before(spec, kept, style, problems)
    record = {"spec": asdict(spec), "chosen_seed": kept, "runs": runs, "seen_before": seen}
    return best, record


def join_halves(
    halves: list[tuple[Qwen2ForCausalLM, dict[str, Any]]], style: str
) -> Qwen2ForCausalLM:
    """The model that the trained halves make together."""
    for model, record in halves:
        spec = Spec(**record["spec"])
        batches = Batches(spec, EVALUATION_SEED, style)
        drawn = [p for u in range(_TEXTS // 32 + 1) for p in batches.problems(spec.short + u)]
        silence(model, [torch.tensor(batches.encode(p)[0]) for p in drawn])
    (numbers, record), (graphs, _) = halves
    return join(numbers, graphs, record["spec"]["vocabulary"])


def save_role(
    role: str,
    halves: list[tuple[Qwen2ForCausalLM, dict[str, Any]]],
    pair: Path,
    problems: int,
    style: str,
) -> None:
    """Join the halves, round to bf16, write the folder and the training record."""
    model: Any = join_halves(halves, style).bfloat16()  # transformers leaves float() untyped
    model.save_pretrained(pair / role)
    build_tokenizer().save(str(pair / role / "tokenizer.json"))
    (pair / role / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    batches = Batches(ROLES[role][0], EVALUATION_SEED, style)
    summary = {
        "style": style,
        "hidden": model.config.hidden_size,
        "layers": model.config.num_hidden_layers,
        "heads": model.config.num_attention_heads,
        "feed_forward": model.config.intermediate_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "step_accuracy": step_accuracy(model.float(), batches, problems, EVALUATION_SEED),
        "problems": problems,
        "halves": [record for _, record in halves],
    }
    (pair / f"{role}-training.json").write_text(json.dumps(summary, indent=1) + "\n")


def train_role(role: str, work: Path, problems: int, style: str, position: int) -> None:
    """Train the halves of one model, one after the other, and join them."""
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    halves = [train_half(spec, role, work, problems, style, position) for spec in ROLES[role]]
    save_role(role, halves, work / "pair", problems, style)


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
    roles = [role for role in ROLES if options.only in (None, role)]
    context = mp.get_context("spawn")
    workers = [
        context.Process(target=train_role, args=(role, work, options.problems, options.style, i))
        for i, role in enumerate(roles)
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
        print(f"{role}: step accuracy")
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
