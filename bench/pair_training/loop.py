"""The training loop: Muon and AdamW, a constant rate that falls at the end, checkpoints."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import Qwen2ForCausalLM

from bench.pair_training.batches import Batches
from bench.pair_training.grow import grow
from bench.pair_training.model import build_model
from bench.pair_training.muon import Muon
from bench.pair_training.spec import SMALL, Spec

_WARM_UP = 100
_CHECKPOINT_EVERY = 250


def learning_rate(update: int, spec: Spec) -> float:
    """Linear warm-up, constant, then a cosine down to 2%; relative to the peak.

    While it is constant a run may still be made shorter or longer without a new start.
    """
    done = max(0.0, 1 - (spec.updates - update) / spec.decay)
    return min(1.0, (update + 1) / _WARM_UP, 0.51 + 0.49 * math.cos(math.pi * done))


def build_optimizers(model: Qwen2ForCausalLM, spec: Spec) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for embedding, norms and biases."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    hidden = [p for n, p in named if p.ndim == 2 and "embed" not in n]
    embedding = [p for n, p in named if "embed" in n]
    vectors = [p for _, p in named if p.ndim == 1]
    muon = Muon(hidden, lr=0.02, weight_decay=0.05, momentum=0.95)
    groups = [{"params": embedding, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    return [muon, torch.optim.AdamW(groups, lr=spec.adam_lr, betas=(0.9, 0.98))]


def _grown(spec: Spec, seed: int, style: str) -> Qwen2ForCausalLM:
    small = SMALL[1]
    seedling = Training(small, small.seeds[0], style)
    seedling.run(until=spec.grown)
    return grow(seedling.model, spec, seed)


class Training:
    """One model in training, from one seed; goes on from its checkpoint if there is one."""

    def __init__(self, spec: Spec, seed: int, style: str, checkpoint: Path | None = None) -> None:
        self.spec, self.checkpoint = spec, checkpoint
        goes_on = checkpoint is not None and checkpoint.is_file()
        grows = spec.grown and not goes_on
        self.model = _grown(spec, seed, style) if grows else build_model(spec, seed)
        self.batches = Batches(spec, seed, style)
        self.optimizers = build_optimizers(self.model, spec)
        self._peaks = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self.update, self.seconds, self.cpu_seconds, self.tokens = 0, 0.0, 0.0, 0
        if checkpoint and goes_on:
            self._load(torch.load(checkpoint, weights_only=True))

    def run(self, position: int = 0, until: int | None = None) -> None:
        """Make all updates, or those up to ``until``."""
        last = self.spec.updates if until is None else until
        before = self.seconds - time.perf_counter(), self.cpu_seconds - time.process_time()
        bar = tqdm(
            total=last, initial=self.update, desc=self.spec.name, position=position, mininterval=10
        )
        while self.update < last:
            loss = self._step()
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            self.seconds = before[0] + time.perf_counter()
            self.cpu_seconds = before[1] + time.process_time()
            if self.update % _CHECKPOINT_EVERY == 0:
                self.save()
        self.save()

    def _step(self) -> float:
        factor = learning_rate(self.update, self.spec)
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = factor * peak
        ids, labels, looked_up = self.batches.draw(self.update)
        fast = bool(torch.cpu.get_capabilities().get("avx512_bf16"))  # elsewhere it is emulated
        with torch.autocast("cpu", torch.bfloat16, enabled=self.spec.autocast and fast):
            done = self.model(
                input_ids=ids, labels=labels, output_hidden_states=self.spec.taught > 0
            )
            loss = done.loss
            if self.spec.taught and bool((looked_up >= 0).any()):
                loss = loss + self._lesson(done.hidden_states[self.spec.taught], looked_up)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.update += 1
        self.tokens += ids.numel()
        lost: float = loss.item()
        return lost

    def _lesson(self, state: Tensor, looked_up: Tensor) -> Tensor:
        """Loss of a state [batch, length, hidden] inside the model at predicting the look-up.

        Nothing else teaches the model to make a hop of two places in two layers: without this loss
        the large model only guesses.
        """
        logits = self.model.lm_head(self.model.model.norm(state[:, :-1]))
        return cross_entropy(logits.flatten(0, 1), looked_up[:, 1:].flatten())

    def save(self) -> None:
        """Write the checkpoint, if the run has a path for it."""
        if self.checkpoint is None:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "random": self.batches.rng.getstate(),
            "counts": (self.update, self.seconds, self.cpu_seconds, self.tokens),
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.checkpoint)

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.batches.rng.setstate(state["random"])
        self.update, self.seconds, self.cpu_seconds, self.tokens = state["counts"]
