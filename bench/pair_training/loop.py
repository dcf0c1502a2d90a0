"""The training loop: Muon and AdamW, a constant rate that falls at the end, checkpoints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import Qwen2ForCausalLM

from bench.pair_training.batches import Batches
from bench.pair_training.model import build_model
from bench.pair_training.spec import Spec

_WARM_UP = 100
_CHECKPOINT_EVERY = 250


def learning_rate(update: int, spec: Spec) -> float:
    """Linear warm-up, then constant, then linear down to 2%; relative to the peak.

    Constant until it falls: before that a run may be made shorter or longer without a new start.
    """
    left = (spec.updates - update) / max(1, spec.decay)
    return min(1.0, (update + 1) / _WARM_UP, max(0.02, left))


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


class Training:
    """One model in training, from one seed; goes on from its checkpoint if there is one."""

    def __init__(self, spec: Spec, seed: int, style: str, checkpoint: Path | None = None) -> None:
        self.spec, self.checkpoint = spec, checkpoint
        self.model = build_model(spec, seed)
        self.batches = Batches(spec, seed, style)
        self.optimizers = build_optimizers(self.model, spec)
        self._peaks = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self.update, self.seconds, self.cpu_seconds, self.tokens = 0, 0.0, 0.0, 0
        if checkpoint and checkpoint.is_file():
            self._load(torch.load(checkpoint, weights_only=False))

    def run(self, position: int = 0) -> Qwen2ForCausalLM:
        """All updates; the model with its weights rounded to bf16."""
        before = self.seconds - time.perf_counter(), self.cpu_seconds - time.process_time()
        bar = tqdm(
            total=self.spec.updates, initial=self.update, desc=self.spec.name, position=position,
            mininterval=10,
        )  # fmt: skip
        while self.update < self.spec.updates:
            loss = self._step()
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            self.seconds = before[0] + time.perf_counter()
            self.cpu_seconds = before[1] + time.process_time()
            if self.checkpoint and self.update % _CHECKPOINT_EVERY == 0:
                self._save(self.checkpoint)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(parameter.to(torch.bfloat16))
        return self.model.eval()

    def _step(self) -> float:
        factor = learning_rate(self.update, self.spec)
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = factor * peak
        ids, labels = self.batches.draw(self.update)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.spec.autocast):
            loss = self.model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.update += 1
        self.tokens += ids.numel()
        return loss.item()

    def _save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "random": self.batches.rng.getstate(),
            "counts": (self.update, self.seconds, self.cpu_seconds, self.tokens),
        }
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.batches.rng.setstate(state["random"])
        self.update, self.seconds, self.cpu_seconds, self.tokens = state["counts"]
