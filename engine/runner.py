"""Runs plans of one model: buffers become tensors, a forward pass, tokens and confidences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine import _core
from engine.models.decoder import Batch, Decoder
from engine.pricing import Executed
from engine.request import SamplingParams
from engine.routing.signals import Signals
from kernels import ops


class Draw(Protocol):
    """What keys a request's random draws."""

    params: SamplingParams
    seed: int
    prompt_tokens: int
    stop_ids: tuple[int, ...]
    sample: int


@dataclass(frozen=True)
class TickResult:
    """What a forward pass gave for each sequence of a plan.

    tokens: int32 [sequences]; -1 where the logits were unusable, 0 where none were wanted.
    """

    tokens: npt.NDArray[np.int32]
    confidence: ops.Confidence
    _order: dict[int, int]  # plan row -> row of the confidence

    @property
    def sampled(self) -> list[int]:
        """The plan rows whose logits were sampled."""
        return list(self._order)

    def signals(self, row: int) -> Signals:
        """The boundary statistics of one plan row that was sampled."""
        index, c = self._order[row], self.confidence
        return Signals(
            max_prob=float(c.max_prob[index]),
            entropy=float(c.entropy[index]),
            log_odds=float(c.log_odds[index]),
            margin=float(c.margin[index]),
            max_logit=float(c.max_logit[index]),
            logsumexp=float(c.logsumexp[index]),
        )


class ModelRunner:
    """One model and its view of the arena. Owns neither the arena nor the plans."""

    def __init__(
        self, model: int, decoder: Decoder, arena: Tensor, layout: ops.KVLayout, vocabulary: int
    ) -> None:
        """``arena`` is ``KVArena.rows`` of this model; ids from ``vocabulary`` on are padding."""
        self.model = model
        self.decoder = decoder
        self.executed = Executed()
        self._arena = arena
        self._layout = layout
        self._vocabulary = vocabulary

    def execute(self, plan: _core.Plan, requests: Mapping[int, Draw]) -> TickResult:
        """Run one plan; ``requests`` by sequence id give the sampling parameters."""
        if plan.copied:
            copies = torch.from_numpy(plan.copies[: plan.copied].astype(np.int64))
            ops.copy_blocks(self._arena, self._layout, copies)
        n, rows = plan.sequences, plan.rows
        starts, contexts, blocks, tokens, positions, slots = (
            torch.from_numpy(a.astype(np.int64))
            for a in (
                plan.starts[: n + 1], plan.contexts[:n], plan.blocks[:n], plan.tokens[:rows],
                plan.positions[:rows], plan.slots[:rows],
            )
        )  # fmt: skip
        attention = ops.AttentionPlan.build(self._layout, starts, contexts, blocks, slots)
        wanted = np.flatnonzero(plan.samples[:n])
        batch = Batch(tokens, positions, starts[1:][wanted] - 1, attention)
        logits = self.decoder.forward(batch, self._arena)
        groups = (g.queries.numel() * g.keys.shape[-1] for g in attention.groups)
        self.executed.add(self.decoder.config, rows, len(wanted), groups)
        return self._sample(logits, plan, wanted, requests)

    def _sample(
        self,
        logits: Tensor,
        plan: _core.Plan,
        wanted: npt.NDArray[np.intp],
        requests: Mapping[int, Draw],
    ) -> TickResult:
        confidence = ops.confidence(logits, self._vocabulary)
        draws = [requests[i] for i in plan.ids[wanted].tolist()]
        early = [
            i
            for i, (draw, context) in enumerate(zip(draws, plan.contexts[wanted], strict=True))
            if draw.params.min_tokens and context - draw.prompt_tokens < draw.params.min_tokens
        ]
        if not early and all(d.params.temperature == 0 for d in draws):
            chosen = confidence.argmax
        else:
            usable = torch.where(confidence.valid[:, None], logits, 0.0)
            for i in early:
                usable[i, list(draws[i].stop_ids)] = -torch.inf
            keys = self._uniforms(plan, wanted, draws)
            chosen = ops.sample(usable, self._vocabulary, _sampling_rows(draws, keys))
        tokens = np.zeros(plan.sequences, np.int32)
        tokens[wanted] = torch.where(confidence.valid, chosen, -1).numpy()
        return TickResult(tokens, confidence, {int(row): i for i, row in enumerate(wanted)})

    def _uniforms(
        self, plan: _core.Plan, wanted: npt.NDArray[np.intp], draws: list[Draw]
    ) -> Tensor:
        seeds = np.array([d.seed for d in draws], np.uint64)
        counter = np.zeros((len(draws), 4), np.uint64)
        counter[:, 0] = [d.sample for d in draws]
        counter[:, 1] = plan.contexts[wanted]
        counter[:, 2] = self.model
        counter[:, 3] = plan.attempts[wanted]
        return ops.philox_uniform(seeds, counter)


def _sampling_rows(draws: list[Draw], uniform: Tensor) -> ops.SamplingRows:
    params = [d.params for d in draws]
    return ops.SamplingRows(
        temperature=torch.tensor([p.temperature for p in params], dtype=torch.float64),
        top_k=torch.tensor([p.top_k for p in params]),
        top_p=torch.tensor([p.top_p for p in params], dtype=torch.float64),
        min_p=torch.tensor([p.min_p for p in params], dtype=torch.float64),
        uniform=uniform,
    )
