"""Samples tokens from a tick's logits, by the parameters of each row's request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

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
    """How a request samples, and the keys of its random draws.

    draw_key: 64 bits, of the seed and the prompt.
    sample: number of the answer among those to the same prompt, from 0.
    asks: how many likely tokens' log-probabilities it needs; None: no log-probabilities.
    audited: whether the large model scores the small model's steps.
    """

    params: SamplingParams
    draw_key: int
    prompt_tokens: int
    stop_ids: tuple[int, ...]
    sample: int
    asks: int | None

    @property
    def audited(self) -> bool: ...


@dataclass(frozen=True)
class History:
    """A row's tokens, for penalties.

    unread: its last token is missing, because it is not on the host yet.
    """

    prompt: Int32
    generated: Int32
    unread: bool


@dataclass(frozen=True)
class SampledRows:
    """The sampled rows of a plan, in the order of their logits; copies of the plan's numbers.

    ids: int64 [rows], ids of their sequences.
    contexts: int32 [rows], tokens that a row has seen: the position of the token that it draws.
    attempts: int32 [rows], truncations of the sequence so far; they key its draws.
    draws: how each row samples.
    histories: by row, where penalties need earlier tokens.
    """

    ids: npt.NDArray[np.int64]
    contexts: Int32
    attempts: Int32
    draws: list[SamplingSpec]
    histories: dict[int, History]

    @cached_property
    def asked(self) -> dict[int, int]:
        """By row: how many likely tokens' log-probabilities it needs, if any."""
        counts = ((i, draw.asks) for i, draw in enumerate(self.draws))
        return {i: count for i, count in counts if count is not None}

    @cached_property
    def edited(self) -> list[int]:
        """Rows with penalties or biases."""
        return [i for i, draw in enumerate(self.draws) if draw.params.edits_logits]

    @cached_property
    def early(self) -> list[int]:
        """Rows whose text must not end yet (``min_tokens``)."""
        return [
            i
            for i, (draw, context) in enumerate(zip(self.draws, self.contexts, strict=True))
            if draw.params.min_tokens and context - draw.prompt_tokens < draw.params.min_tokens
        ]

    @cached_property
    def plain(self) -> bool:
        """Whether each row takes the likeliest token of unchanged logits, without logprobs."""
        params = [draw.params for draw in self.draws]
        greedy = all(p.temperature == 0 for p in params) and not self.asked
        return greedy and not self.edited and not self.early


class Sampler:
    """Samples the tokens of one model. Keeps no state between ticks."""

    def __init__(
        self,
        model: int,
        vocabulary: int,
        tokens_of: Callable[[int], Int32],
        backend: ops.Backend,
        fused: bool = True,
        rows_at_once: int = ROWS_AT_ONCE,
    ) -> None:
        """
        Args:
            vocabulary: ids from here on are padding.
            tokens_of: a sequence's tokens by its id.
            backend: what computes on the device of the logits.
            fused: draw in a kernel of its own where there is one, else in plain PyTorch.
            rows_at_once: rows whose logits are widened at a time, for penalties and
                log-probabilities; a batch of any size takes the memory of so many.
        """
        self._model = model
        self._backend = backend
        self._fused = fused
        self._rows_at_once = rows_at_once
        self.vocabulary = vocabulary
        self.tokens_of = tokens_of

    def rows(
        self, plan: _core.Plan, wanted: npt.NDArray[np.intp], requests: Mapping[int, SamplingSpec]
    ) -> SampledRows:
        """The ``wanted`` rows of a plan, copied: its buffers may be reused afterwards."""
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
        """A token id for each row, int64 [rows]; -1 where the logits are unusable. Never waits.

        Args:
            logits: [rows, head_rows]; not changed.
            confidence: their signals.
            rows: their rows.
            last: int32 [rows], the token that each row has read; on the device of the logits.
        """
        edited, early = rows.edited, rows.early
        if not edited and not early and all(d.params.temperature == 0 for d in rows.draws):
            chosen = confidence.argmax
        else:
            usable = torch.where(confidence.valid[:, None], logits, 0.0)
            if edited or early:
                usable = self._backend.editable(usable, self.vocabulary)
            for some in self._chunks(edited):
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
            draws = self._draws(rows, logits)
            chosen = self._backend.sample(usable, self.vocabulary, draws, self._fused)
        return torch.where(confidence.valid, chosen, -1)

    def logprobs(self, logits: Tensor, chosen: Tensor, rows: SampledRows) -> ops.LogProbs | None:
        """Log-probabilities of the rows in ``rows.asked``; None if there are none."""
        asked = rows.asked
        if not asked:
            return None
        found, count = [], max(asked.values())
        for some in self._chunks(list(asked)):
            index = _place(torch.tensor(some), logits)
            tokens = chosen.index_select(0, index).clamp(min=0)
            part = logits.index_select(0, index)
            found.append(self._backend.token_logprobs(part, self.vocabulary, tokens, count))
        return ops.LogProbs(*map(torch.cat, zip(*found, strict=True)))

    def drawn(
        self, tokens: Sequence[int], logprobs: ops.LogProbs | None, rows: SampledRows
    ) -> dict[int, Drawn]:
        """The draws with log-probabilities by sequence id, of the rows in ``rows.asked``.

        Args:
            tokens: drawn tokens of all rows; rows below 0 were unusable and are left out.
            logprobs: the result of ``logprobs``, on the host.
        """
        if logprobs is None:
            return {}
        drawn: dict[int, Drawn] = {}
        parts = zip(rows.asked.items(), *(part.tolist() for part in logprobs), strict=True)
        for (i, count), own, top, ids in parts:
            if tokens[i] >= 0:
                entry = TokenLogprobs(own, tuple(zip(ids, top, strict=True))[:count])
                place = int(rows.contexts[i])
                drawn[int(rows.ids[i])] = Drawn(place, self._model, tokens[i], entry)
        return drawn

    def _chunks(self, rows: list[int]) -> list[list[int]]:
        size = self._rows_at_once
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def _history(self, draw: SamplingSpec, request: int, context: int) -> History:
        tokens = self.tokens_of(request)[:context]
        unread = len(tokens) < context
        return History(tokens[: draw.prompt_tokens], tokens[draw.prompt_tokens :], unread)

    def _draws(self, rows: SampledRows, logits: Tensor) -> ops.DrawRows:
        params = [d.params for d in rows.draws]
        counter = np.zeros((len(params), 3), np.int64)
        counter[:, 0] = [d.sample for d in rows.draws]
        counter[:, 1] = rows.contexts
        counter[:, 2] = 2 * rows.attempts.astype(np.int64) + self._model
        columns = {
            "temperature": _column(p.temperature for p in params),
            "key": _keys(d.draw_key for d in rows.draws),
            "counter": torch.from_numpy(counter),
        }
        if any(p.top_k for p in params):
            columns["top_k"] = torch.tensor([p.top_k for p in params])
        if any(p.top_p < 1 for p in params):
            columns["top_p"] = _column(p.top_p for p in params)
        if any(p.min_p for p in params):
            columns["min_p"] = _column(p.min_p for p in params)
        return ops.DrawRows(**{name: _place(column, logits) for name, column in columns.items()})


def _place(values: Tensor, like: Tensor) -> Tensor:
    """Copy to the device of ``like``, without waiting for it."""
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
    if unread:  # drawn by the previous tick: only the device knows these tokens
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


def _keys(keys: Iterable[int]) -> Tensor:
    """The 64 bits of each key as int64."""
    return torch.from_numpy(np.array([*keys], np.uint64).view(np.int64))


def _pairs(tokens: Sequence[Int32]) -> Tensor:
    """(row, token id) of all tokens of all rows, int64 [2, tokens]."""
    rows = np.repeat(np.arange(len(tokens)), [len(t) for t in tokens])
    return torch.from_numpy(np.stack([rows, np.concatenate(tokens)]).astype(np.int64))
