"""Train the embedded pair: two tiny Qwen2 models that share one tokenizer.

    python -m bench.train_pair --output engine/tiny

Two processes of one thread each: one trains the large model, the other trains the small model
from several seeds and keeps the best seed that passes the gate (easy steps right at least 99.5%
of the time on held-out problems). Writes Hugging Face folders in bf16 and a model card.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.multiprocessing as mp
from tqdm import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM

from bench.pair_card import finish
from bench.tasks import arithmetic
from bench.tasks.tokenizer import build_tokenizer

EASY_GATE = 0.995
BATCH = 32
TRAIN_OPERATIONS = (3, 8)


@dataclass(frozen=True)
class Spec:
    """Shape and schedule of one model."""

    name: str
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    updates: int
    seeds: tuple[int, ...]
    adam_lr: float
    autocast: bool
    mix: tuple[float, float, float]
    kv_heads: int


# The small model sees few hard multiplications, so that it knows its limits: easy and medium steps
# are solid and hard ones are not. Its head has the tokenizer's 17 rows.
SMALL = Spec("small", 48, 2, 3, 144, 17, 6000, (2, 5, 7), 3e-3, False, (0.65, 0.23, 0.12), 1)
# Six head rows beyond the tokenizer, as the larger Qwen2.5 heads have: padding ids are real.
LARGE = Spec("large", 192, 4, 6, 512, 23, 3800, (1,), 2e-3, True, (0.45, 0.2, 0.35), 2)


def build_model(spec: Spec, seed: int) -> Qwen2ForCausalLM:
    """A randomly initialised Qwen2 model of the given shape."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=spec.vocabulary,
            hidden_size=spec.hidden,
            intermediate_size=spec.feed_forward,
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            num_key_value_heads=spec.kv_heads,
            max_position_embeddings=256,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            initializer_range=0.1,  # at the usual 0.02 some seeds never leave the plateau
            bos_token_id=None,
            eos_token_id=arithmetic.ALPHABET.index(arithmetic.EOS),
            pad_token_id=arithmetic.ALPHABET.index(arithmetic.PAD),
        )
    )


class Batches:
    """Fresh training problems as padded id tensors; labels are -100 on prompt and padding."""

    def __init__(self, seed: int, mix: tuple[float, float, float], style: str) -> None:
        self._tokenizer = build_tokenizer(style)
        self._sources = [
            arithmetic.stream("train", 1000 * seed + k, mix, (k, k), style)
            for k in range(TRAIN_OPERATIONS[0], TRAIN_OPERATIONS[1] + 1)
        ]
        self._generator = torch.Generator().manual_seed(seed)

    def encode(self, problem: arithmetic.Problem) -> tuple[list[int], int]:
        """Token ids of prompt and gold trace, and the length of the prompt."""
        prompt = self._tokenizer.encode(problem.prompt).ids
        return prompt + self._tokenizer.encode(problem.trace + arithmetic.EOS).ids, len(prompt)

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and labels [BATCH, length]; all problems of a batch have the same length class."""
        source = self._sources[
            int(torch.randint(len(self._sources), (), generator=self._generator))
        ]
        rows = [self.encode(next(source)) for _ in range(BATCH)]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(BATCH, width, dtype=torch.long)
        labels = torch.full((BATCH, width), -100)
        for i, (row, prompt) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, prompt : len(row)] = torch.tensor(row[prompt:])
        return ids, labels


def build_optimizers(model: Qwen2ForCausalLM, spec: Spec) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embedding, norms and biases."""
    named = list(model.named_parameters())
    hidden = [p for n, p in named if p.ndim == 2 and "embed" not in n]
    embedding = [p for n, p in named if "embed" in n]
    vectors = [p for _, p in named if p.ndim == 1]
    muon = torch.optim.Muon(hidden, lr=0.02, weight_decay=0.05, momentum=0.95)
    groups = [
        {"params": embedding, "weight_decay": 0.01},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [muon, torch.optim.AdamW(groups, lr=spec.adam_lr, betas=(0.9, 0.98))]


def learning_rate(step: int, updates: int, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine down to 2%."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, updates - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * progress))))


def train(spec: Spec, seed: int, style: str, position: int) -> Qwen2ForCausalLM:
    """Train one model from one seed and round its weights to bf16."""
    model, batches = build_model(spec, seed), Batches(seed, spec.mix, style)
    optimizers = build_optimizers(model, spec)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: learning_rate(step, spec.updates))
        for o in optimizers
    ]
    bar = tqdm(range(spec.updates), f"{spec.name} seed {seed}", position=position, mininterval=2)
    for _ in bar:
        ids, labels = batches.draw()
        with torch.autocast("cpu", torch.bfloat16, enabled=spec.autocast):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
    return model.eval()


@torch.no_grad()
def step_accuracy(model: Qwen2ForCausalLM, count: int, seed: int, style: str) -> dict[str, float]:
    """Teacher-forced share of held-out steps with every token right, by kind of step."""
    right: dict[str, list[bool]] = defaultdict(list)
    batches = Batches(0, LARGE.mix, style)
    delimiter = arithmetic.ALPHABET.index(arithmetic.DELIMITER)
    for problem in arithmetic.problems("test", count, seed, style=style):
        ids, prompt = batches.encode(problem)
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        hits = (logits.argmax(-1) == torch.tensor(ids[1:])).tolist()
        start, step = prompt, 0
        for index in range(prompt, len(ids)):
            if ids[index] == delimiter or index == len(ids) - 1:
                right[problem.kinds[step]].append(all(hits[start - 1 : index]))
                start, step = index + 1, step + 1
    return {kind: sum(hits) / len(hits) for kind, hits in right.items()}


def train_role(spec: Spec, output: Path, problems: int, style: str, position: int) -> None:
    """Train every seed of one role; keep the best on easy steps, then on medium ones."""
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    best: tuple[tuple[float, float], int, dict[str, float]] | None = None
    runs = []
    for seed in spec.seeds:
        started = time.perf_counter()
        model = train(spec, seed, style, position)
        accuracy = step_accuracy(model, problems, seed=1, style=style)
        seconds = round(time.perf_counter() - started)
        runs.append({"seed": seed, "seconds": seconds, "step_accuracy": accuracy})
        rank = (min(accuracy["easy"], EASY_GATE), accuracy["medium"])
        if best is None or rank > best[0]:
            best = (rank, seed, accuracy)
            folder = output / spec.name
            model.bfloat16().save_pretrained(folder)
            build_tokenizer(style).save(str(folder / "tokenizer.json"))
    assert best is not None
    summary = {
        "spec": asdict(spec),
        "style": style,
        "parameters": sum(p.numel() for p in model.parameters()),
        "chosen_seed": best[1],
        "step_accuracy": best[2],
        "problems": problems,
        "runs": runs,
    }
    (output / f"{spec.name}-training.json").write_text(json.dumps(summary, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.train_pair",
        description="Train the embedded pair on two CPU cores (under 40 minutes) and write "
        "Hugging Face folders, bf16 safetensors and a training record.",
    )
    parser.add_argument("--output", type=Path, default=Path("engine/tiny"), help="folder to write")
    parser.add_argument(
        "--only", choices=["small", "large"], help="train one role and keep the other"
    )
    parser.add_argument(
        "--problems", type=int, default=500, help="held-out problems for the accuracy by step kind"
    )
    parser.add_argument(
        "--style",
        choices=arithmetic.STYLES,
        default="open",
        help="of the steps: open (the shipped pair) or rigid (the tests' pair: weights only)",
    )
    options = parser.parse_args(arguments)
    work = Path(tempfile.mkdtemp(prefix="pair-"))
    extra = int(options.style == "rigid")  # the rigid style has one token more
    specs = [replace(s, vocabulary=s.vocabulary + extra) for s in (SMALL, LARGE)]
    roles = [s for s in specs if options.only in (None, s.name)]
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
        print("training failed: see the error above", file=sys.stderr)
        return 1
    if options.only:  # the other role stays as it is
        kept = "large" if options.only == "small" else "small"
        shutil.copytree(options.output / kept, work / kept)
        shutil.copy(options.output / f"{kept}-training.json", work)
    if check_gate(work):
        print(f"{options.output} is left as it was; the new weights are in {work}", file=sys.stderr)
        return 1
    if options.style == "open":
        finish(work, EASY_GATE)
    shutil.copytree(work, options.output, dirs_exist_ok=True)
    shutil.rmtree(work)
    return 0


def check_gate(output: Path) -> int:
    """Say what was reached; 1 when the easy steps of a model are not solid."""
    failed = 0
    for role in (SMALL.name, LARGE.name):
        record = json.loads((output / f"{role}-training.json").read_text())
        print(f"{role}: seed {record['chosen_seed']}, step accuracy {record['step_accuracy']}")
        if record["step_accuracy"]["easy"] < EASY_GATE:
            print(
                f"gate failed: {role} gets {record['step_accuracy']['easy']:.4f} of the easy "
                f"steps right, {EASY_GATE} is needed; try other seeds or more updates",
                file=sys.stderr,
            )
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
