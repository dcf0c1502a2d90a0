"""Runs plans of one model: buffers become tensors, a forward pass, tokens and confidences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine import _core
from engine.logprobs import Drawn
from engine.models.decoder import Batch, Decoder
from engine.pricing import Executed
from engine.routing.signals import Signals
from engine.sampler import Draw, SampledRows, Sampler
from kernels import ops


@dataclass(frozen=True)
class TickResult:
    """What a forward pass gave for each sequence of a plan.

    tokens: int32 [sequences]; -1 where the logits were unusable, 0 where none were wanted.
    drawn: by sequence id, where log-probabilities are asked for and the logits were usable.
    """

    tokens: npt.NDArray[np.int32]
    confidence: ops.Confidence
    drawn: dict[int, Drawn]
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
        self, model: int, decoder: Decoder, arena: Tensor, layout: ops.KVLayout, sampler: Sampler
    ) -> None:
        """``arena`` is ``KVArena.rows`` of this model."""
        self.model = model
        self.decoder = decoder
        self.executed = Executed()
        self._arena = arena
        self._layout = layout
        self._sampler = sampler

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
        rows = SampledRows.of(plan, wanted, requests)
        confidence = ops.confidence(logits, self._sampler.vocabulary)
        chosen = self._sampler.choose(logits, confidence, rows)
        tokens = np.zeros(plan.sequences, np.int32)
        tokens[wanted] = chosen.numpy()
        order = {int(row): i for i, row in enumerate(wanted)}
        return TickResult(tokens, confidence, self._sampler.logprobs(logits, chosen, rows), order)
