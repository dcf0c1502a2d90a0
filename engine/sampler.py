"""From a tick's logits to tokens: what each request asks for, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine import _core
from engine.logprobs import DrawLog, Drawn
from engine.params import SamplingParams
from engine.request import TokenLogprobs
from engine.routing.signals import Signals
from kernels import ops

Int32 = npt.NDArray[np.int32]


class Draw(Protocol):
    """How a request samples, what keys its random draws, and what it keeps of them."""

    params: SamplingParams
    seed: int
    prompt_tokens: int
    stop_ids: tuple[int, ...]
    sample: int
    drawn: DrawLog
    collects: bool
    signals: dict[int, Signals]


@dataclass(frozen=True)
class SampledRows:
    """The rows of a plan that are sampled, in the order of their logits, [rows]."""

    ids: npt.NDArray[np.int64]  # of sequences
    contexts: Int32  # tokens that a row has seen: the position of what it draws
    attempts: Int32
    draws: list[Draw]

    @classmethod
    def of(
        cls, plan: _core.Plan, wanted: npt.NDArray[np.intp], requests: Mapping[int, Draw]
    ) -> SampledRows:
        """The ``wanted`` rows of a plan; copies, as the plan's buffers are used again."""
        ids = plan.ids[wanted]
        draws = [requests[i] for i in ids.tolist()]
        return cls(ids, plan.contexts[wanted], plan.attempts[wanted], draws)


class Sampler:
    """Draws the tokens of one model. Keeps nothing between ticks."""

    def __init__(self, model: int, vocabulary: int, tokens_of: Callable[[int], Int32]) -> None:
        """``tokens_of``: a sequence's tokens by its id. Ids from ``vocabulary`` on are padding."""
        self._model = model
        self.vocabulary = vocabulary
        self._tokens_of = tokens_of

    def choose(self, logits: Tensor, confidence: ops.Confidence, rows: SampledRows) -> Tensor:
        """One token id a row, int64 [rows]; -1 where the logits are unusable.

        ``logits``, [rows, head_rows], stay as they are.
        """
        params = [d.params for d in rows.draws]
        edited = [i for i, p in enumerate(params) if p.edits_logits]
        early = [
            i
            for i, (draw, context) in enumerate(zip(rows.draws, rows.contexts, strict=True))
            if draw.params.min_tokens and context - draw.prompt_tokens < draw.params.min_tokens
        ]
        if not edited and not early and all(p.temperature == 0 for p in params):
            chosen = confidence.argmax
        else:
            usable = torch.where(confidence.valid[:, None], logits, 0.0)
            usable = usable[:, : self.vocabulary].double()
            if edited:
                penalties = self._penalties(rows, edited)
                usable[edited] = ops.penalise(usable[edited], self.vocabulary, penalties)
            for i in early:
                usable[i, list(rows.draws[i].stop_ids)] = -torch.inf
            sampling = _sampling_rows(params, self._uniforms(rows))
            chosen = ops.sample(usable, self.vocabulary, sampling)
        return torch.where(confidence.valid, chosen, -1)

    def logprobs(self, logits: Tensor, chosen: Tensor, rows: SampledRows) -> dict[int, Drawn]:
        """What was drawn for each sequence that asks for log-probabilities, by its id."""
        counts = {
            i: count
            for i, draw in enumerate(rows.draws)
            if (count := draw.params.logprobs) is not None and chosen[i] >= 0
        }
        if not counts:
            return {}
        asked = list(counts)
        tokens = chosen[asked]
        found = ops.token_logprobs(logits[asked], self.vocabulary, tokens, max(counts.values()))
        parts = zip(asked, tokens.tolist(), *(part.tolist() for part in found), strict=True)
        drawn: dict[int, Drawn] = {}
        for i, token, own, top, ids in parts:
            entry = TokenLogprobs(own, tuple(zip(ids, top, strict=True))[: counts[i]])
            drawn[int(rows.ids[i])] = Drawn(int(rows.contexts[i]), self._model, token, entry)
        return drawn

    def _penalties(self, rows: SampledRows, edited: list[int]) -> ops.PenaltyRows:
        params = [rows.draws[i].params for i in edited]
        prompts, texts = zip(*(self._history(rows, i) for i in edited), strict=True)
        return ops.PenaltyRows(
            repetition=_column(p.repetition_penalty for p in params),
            presence=_column(p.presence_penalty for p in params),
            frequency=_column(p.frequency_penalty for p in params),
            prompt=_pairs(prompts),
            generated=_pairs(texts),
            biased=_pairs([np.array([*p.logit_bias], np.int32) for p in params]),
            bias=_column(bias for p in params for bias in p.logit_bias.values()),
        )

    def _history(self, rows: SampledRows, row: int) -> tuple[Int32, Int32]:
        """The prompt and the generated tokens that a row has seen; both empty if it needs none."""
        draw = rows.draws[row]
        if not draw.params.looks_back:
            return np.empty(0, np.int32), np.empty(0, np.int32)
        tokens = self._tokens_of(int(rows.ids[row]))[: rows.contexts[row]]
        return tokens[: draw.prompt_tokens], tokens[draw.prompt_tokens :]

    def _uniforms(self, rows: SampledRows) -> Tensor:
        seeds = np.array([d.seed for d in rows.draws], np.uint64)
        counter = np.zeros((len(seeds), 4), np.uint64)
        counter[:, 0] = [d.sample for d in rows.draws]
        counter[:, 1] = rows.contexts
        counter[:, 2] = self._model
        counter[:, 3] = rows.attempts
        return ops.philox_uniform(seeds, counter)


def _column(values: Iterable[float]) -> Tensor:
    return torch.tensor([*values], dtype=torch.float64)


def _pairs(tokens: Sequence[Int32]) -> Tensor:
    """(row, token id) of all tokens of all rows, int64 [2, tokens]."""
    rows = np.repeat(np.arange(len(tokens)), [len(t) for t in tokens])
    return torch.from_numpy(np.stack([rows, np.concatenate(tokens)]).astype(np.int64))


def _sampling_rows(params: list[SamplingParams], uniform: Tensor) -> ops.SamplingRows:
    return ops.SamplingRows(
        temperature=_column(p.temperature for p in params),
        top_k=torch.tensor([p.top_k for p in params]),
        top_p=_column(p.top_p for p in params),
        min_p=_column(p.min_p for p in params),
        uniform=uniform,
    )
