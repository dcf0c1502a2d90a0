"""From a tick's logits to tokens: what each request asks for, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine import _core
from engine.config import ROWS_AT_ONCE
from engine.execution.logprobs import Drawn
from engine.params import SamplingParams
from engine.request import TokenLogprobs
from kernels import ops

Int32 = npt.NDArray[np.int32]


class SamplingSpec(Protocol):
    """How a request samples, and what keys its random draws.

    sample: counts the answers to one prompt from 0.
    asks: of how many likely tokens it wants log-probabilities; None asks for none.
    audited: whether the large model scores what the small one wrote.
    """

    params: SamplingParams
    seed: int
    prompt_tokens: int
    stop_ids: tuple[int, ...]
    sample: int
    asks: int | None

    @property
    def audited(self) -> bool: ...


@dataclass(frozen=True)
class History:
    """What a row has read, for penalties. ``unread``: its last token is not on the host yet."""

    prompt: Int32
    generated: Int32
    unread: bool


@dataclass(frozen=True)
class SampledRows:
    """The rows of a plan that are sampled, in the order of their logits, [rows]. Copies all."""

    ids: npt.NDArray[np.int64]  # of sequences
    contexts: Int32  # tokens that a row has seen: the position of what it draws
    attempts: Int32
    draws: list[SamplingSpec]
    histories: dict[int, History]  # by row, where penalties look back

    @cached_property
    def asked(self) -> dict[int, int]:
        """Of how many likely tokens each row wants to know, where it wants log-probabilities."""
        counts = ((i, draw.asks) for i, draw in enumerate(self.draws))
        return {i: count for i, count in counts if count is not None}

    @cached_property
    def edited(self) -> list[int]:
        """Rows with penalties or biases."""
        return [i for i, draw in enumerate(self.draws) if draw.params.edits_logits]

    @cached_property
    def early(self) -> list[int]:
        """Rows that may not end yet."""
        return [
            i
            for i, (draw, context) in enumerate(zip(self.draws, self.contexts, strict=True))
            if draw.params.min_tokens and context - draw.prompt_tokens < draw.params.min_tokens
        ]

    @cached_property
    def plain(self) -> bool:
        """Whether each row takes the likeliest token, and nobody asks for more."""
        params = [draw.params for draw in self.draws]
        greedy = all(p.temperature == 0 for p in params) and not self.asked
        return greedy and not self.edited and not self.early


class Sampler:
    """Draws the tokens of one model. Keeps nothing between ticks."""

    def __init__(
        self,
        model: int,
        vocabulary: int,
        tokens_of: Callable[[int], Int32],
        backend: ops.Backend,
        fused: bool = True,
    ) -> None:
        """
        Args:
            vocabulary: ids from here on are padding.
            tokens_of: a sequence's tokens by its id.
            backend: what computes on the device of the logits.
            fused: draw in a kernel of its own where there is one, else in plain PyTorch.
        """
        self._model = model
        self._backend = backend
        self._fused = fused
        self.vocabulary = vocabulary
        self.tokens_of = tokens_of

    def rows(
        self, plan: _core.Plan, wanted: npt.NDArray[np.intp], requests: Mapping[int, SamplingSpec]
    ) -> SampledRows:
        """The ``wanted`` rows of a plan, whose buffers may be used again afterwards."""
        ids, contexts = plan.ids[wanted], plan.contexts[wanted]
        draws = [requests[i] for i in ids.tolist()]
        histories = {
            i: self._history(draw, int(ids[i]), int(contexts[i]))
            for i, draw in enumerate(draws)
            if draw.params.looks_back
        }
        return SampledRows(ids, contexts, plan.attempts[wanted], draws, histories)

    def choose(
        self, logits: Tensor, confidence: ops.Confidence, rows: SampledRows, last: Tensor
    ) -> Tensor:
        """One token id a row, int64 [rows]; -1 where the logits are unusable. Waits for nothing.

        Args:
            logits: [rows, head_rows]; they stay as they are.
            confidence: their statistics.
            rows: what they belong to.
            last: int32 [rows], the token that each row has read; on the device of the logits.
        """
        edited, early = rows.edited, rows.early
        if not edited and not early and all(d.params.temperature == 0 for d in rows.draws):
            chosen = confidence.argmax
        else:
            usable = torch.where(confidence.valid[:, None], logits, 0.0)
            usable = self._backend.editable(usable, self.vocabulary)
            for some in _chunks(edited):
                index = _place(torch.tensor(some), logits)
                penalties = _penalties(rows, some, last)
                part = usable.index_select(0, index)
                changed = self._backend.penalise(part, self.vocabulary, penalties)
                changed = changed.clamp(max=torch.finfo(usable.dtype).max).to(usable.dtype)
                usable[:, : self.vocabulary].index_copy_(0, index, changed)
            if early:
                banned = _pairs([np.array(rows.draws[i].stop_ids, np.int32) for i in early])
                banned[0] = torch.tensor(early)[banned[0]]
                never = usable.new_full((), -torch.inf)
                usable.index_put_(tuple(_place(banned, logits)), never)
            chosen = self._backend.sample(usable, self.vocabulary, self._draws(rows, logits))
        return torch.where(confidence.valid, chosen, -1)

    def logprobs(self, logits: Tensor, chosen: Tensor, rows: SampledRows) -> ops.LogProbs | None:
        """Log-probabilities of the rows that ask for them (``asked``); None if none does."""
        asked = rows.asked
        if not asked:
            return None
        found, count = [], max(asked.values())
        for some in _chunks(list(asked)):
            index = _place(torch.tensor(some), logits)
            tokens = chosen.index_select(0, index).clamp(min=0)
            part = logits.index_select(0, index)
            found.append(self._backend.token_logprobs(part, self.vocabulary, tokens, count))
        return ops.LogProbs(*map(torch.cat, zip(*found, strict=True)))

    def drawn(
        self, tokens: Sequence[int], found: ops.LogProbs | None, rows: SampledRows
    ) -> dict[int, Drawn]:
        """What was drawn for each sequence that asks for log-probabilities, by its id.

        ``tokens`` of all rows, and what ``logprobs`` gave, on the host. Unusable rows give none.
        """
        if found is None:
            return {}
        drawn: dict[int, Drawn] = {}
        parts = zip(rows.asked.items(), *(part.tolist() for part in found), strict=True)
        for (i, count), own, top, ids in parts:
            if tokens[i] >= 0:
                entry = TokenLogprobs(own, tuple(zip(ids, top, strict=True))[:count])
                place = int(rows.contexts[i])
                drawn[int(rows.ids[i])] = Drawn(place, self._model, tokens[i], entry)
        return drawn

    def _history(self, draw: SamplingSpec, request: int, context: int) -> History:
        tokens = self.tokens_of(request)[:context]
        unread = len(tokens) < context
        return History(tokens[: draw.prompt_tokens], tokens[draw.prompt_tokens :], unread)

    def _draws(self, rows: SampledRows, logits: Tensor) -> ops.DrawRows | ops.SamplingRows:
        params = [d.params for d in rows.draws]
        counter = np.zeros((len(params), 4), np.int64)
        counter[:, 0] = [d.sample for d in rows.draws]
        counter[:, 1] = rows.contexts
        counter[:, 2] = self._model
        counter[:, 3] = rows.attempts
        keyed = ops.DrawRows(
            temperature=_column(p.temperature for p in params),
            seed=_keys(d.seed for d in rows.draws),
            counter=torch.from_numpy(counter),
            top_k=torch.tensor([p.top_k for p in params]),
            top_p=_column(p.top_p for p in params),
            min_p=_column(p.min_p for p in params),
        )
        draws: Any = keyed if self._fused else self._backend.with_uniforms(keyed)
        columns = {name: _place(column, logits) for name, column in vars(draws).items()}
        return type(draws)(**columns)


def _chunks(rows: list[int]) -> list[list[int]]:
    return [rows[i : i + ROWS_AT_ONCE] for i in range(0, len(rows), ROWS_AT_ONCE)]


def _place(values: Tensor, like: Tensor) -> Tensor:
    """On the device of ``like``, without waiting for it."""
    if not like.is_cuda:
        return values
    return values.pin_memory().to(like.device, non_blocking=True)


def _penalties(rows: SampledRows, edited: list[int], last: Tensor) -> ops.PenaltyRows:
    params = [rows.draws[i].params for i in edited]
    none = History(np.empty(0, np.int32), np.empty(0, np.int32), False)
    seen = [rows.histories.get(i, none) for i in edited]
    place = partial(_place, like=last)
    generated = place(_pairs([h.generated for h in seen]))
    unread = [n for n, history in enumerate(seen) if history.unread]
    if unread:  # drawn by the tick before: only the device knows it
        places = place(torch.tensor([unread, [edited[n] for n in unread]]))
        tokens = last.index_select(0, places[1]).long().clamp(min=0)
        generated = torch.cat([generated, torch.stack([places[0], tokens])], 1)
    return ops.PenaltyRows(
        repetition=place(_column(p.repetition_penalty for p in params)),
        presence=place(_column(p.presence_penalty for p in params)),
        frequency=place(_column(p.frequency_penalty for p in params)),
        prompt=place(_pairs([h.prompt for h in seen])),
        generated=generated,
        biased=place(_pairs([np.array([*p.logit_bias], np.int32) for p in params])),
        bias=place(_column(bias for p in params for bias in p.logit_bias.values())),
    )


def _column(values: Iterable[float]) -> Tensor:
    return torch.tensor([*values], dtype=torch.float64)


def _keys(seeds: Iterable[int]) -> Tensor:
    """The 64 bits of each seed as int64."""
    return torch.from_numpy(np.array([*seeds], np.uint64).view(np.int64))


def _pairs(tokens: Sequence[Int32]) -> Tensor:
    """(row, token id) of all tokens of all rows, int64 [2, tokens]."""
    rows = np.repeat(np.arange(len(tokens)), [len(t) for t in tokens])
    return torch.from_numpy(np.stack([rows, np.concatenate(tokens)]).astype(np.int64))
