"""Samples tokens from a tick's logits, by the parameters of each row's request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine import _core
from engine._core import LARGE
from engine.config import ROWS_AT_ONCE
from engine.execution.draw_arguments import (
    Chunk,
    bans,
    draw_columns,
    draws_of,
    penalties_of,
    penalty_arrays,
)
from engine.execution.logprobs import Drawn
from engine.execution.regions import Array, Region, words_for, write_regions
from engine.execution.sampled_rows import (
    DrawnRows,
    History,
    SampledRows,
    SamplingSpec,
    guesses_of,
    history_of,
)
from engine.request import TokenLogprobs
from kernels import ops

_BANS = -1  # in place of the number of a chunk


@dataclass(frozen=True)
class Edits:
    """Penalties, biases and bans of a tick, in one buffer on the host: a copy of their own, since
    histories may be as long as the context.

    memory: int32 [words], pinned where the logits are on a GPU.
    regions: by the number of a chunk of rows and the name of an array.
    """

    memory: Tensor
    regions: dict[tuple[int, str], Region]

    def on(self, device: torch.device) -> dict[int, dict[str, Tensor]]:
        """The arrays by chunk, on the device, without waiting for it."""
        memory = self.memory.to(device, non_blocking=True)
        chunks: dict[int, dict[str, Tensor]] = {}
        for (chunk, name), region in self.regions.items():
            chunks.setdefault(chunk, {})[name] = region.of(memory)
        return chunks


@dataclass(frozen=True)
class PreparedDraws:
    """A tick's draws before it runs.

    rows: the sampled rows.
    columns: on the host, what goes to the device with the plan.
    edits: what follows it, in the ticks that change logits.
    """

    rows: SampledRows
    columns: dict[str, Array]
    edits: Edits | None


class Sampler:
    """Samples the tokens of one model. Keeps no state between ticks."""

    def __init__(
        self,
        model: int,
        vocabulary: int,
        backend: ops.Backend,
        fused: bool = True,
        rows_at_once: int = ROWS_AT_ONCE,
        pinned: bool = False,
    ) -> None:
        """
        Args:
            vocabulary: ids from here on are padding.
            backend: what computes on the device of the logits.
            fused: draw in a kernel of its own where there is one, else in plain PyTorch.
            rows_at_once: rows whose logits are widened at a time, for penalties and
                log-probabilities; a batch of any size takes the memory of so many.
            pinned: whether the logits are on a GPU.
        """
        self._model = model
        self._backend = backend
        self._fused = fused
        self._rows_at_once = rows_at_once
        self._pinned = pinned
        self.vocabulary = vocabulary

    def prepare(
        self,
        plan: _core.Plan,
        drawn: DrawnRows,
        requests: Mapping[int, SamplingSpec],
        core: _core.Scheduler,
    ) -> PreparedDraws:
        """The draws of the ``drawn`` rows of a plan, copied: its buffers may be reused afterwards.

        ``core``: the plan's, asked for the tokens of rows with penalties.
        """
        of = drawn.sequences
        ids, guesses = plan.ids[of], plan.guesses[of].astype(bool)
        draws = [requests[i] for i in ids.tolist()]
        verified = guesses_of(draws, ids, drawn.contexts, core) if self._model == LARGE else {}
        rows = SampledRows(ids, drawn.contexts, plan.attempts[of], draws, guesses, verified)
        histories = {
            i: history_of(draw, core, int(ids[i]), int(rows.contexts[i]))
            for i, draw in enumerate(draws)
            if draw.params.looks_back
        }
        return self.prepared(rows, histories)

    def prepared(self, rows: SampledRows, histories: Mapping[int, History]) -> PreparedDraws:
        """The draws of ``rows``; ``histories`` by row, where penalties need earlier tokens."""
        columns = draw_columns(rows, self._model)
        chunks = {
            number: penalty_arrays(rows, some, histories)
            for number, some in enumerate(self._chunks(rows.edited))
        }
        if rows.early:
            chunks[_BANS] = {"banned": bans(rows)}
        return PreparedDraws(rows, columns, self._packed(chunks) if chunks else None)

    def _packed(self, chunks: Mapping[int, Chunk]) -> Edits:
        arrays = {(n, name): array for n, chunk in chunks.items() for name, array in chunk.items()}
        memory = torch.empty(words_for(arrays), dtype=torch.int32, pin_memory=self._pinned)
        regions, end = write_regions(memory.numpy(), 0, arrays)
        return Edits(memory[:end], regions)

    def choose(
        self,
        logits: Tensor,
        confidence: ops.Confidence,
        draws: PreparedDraws,
        columns: Mapping[str, Tensor],
        last: Tensor,
    ) -> tuple[Tensor, ops.LogProbs | None]:
        """A token for each row, and the log-probabilities of the rows that need them. Never waits.

        Args:
            logits: [rows, head_rows]; not changed.
            confidence: their signals.
            draws: of their rows.
            columns: ``draws.columns`` on the device of the logits.
            last: int32 [rows], the token that each row has read; on the device of the logits.

        Returns:
            Token ids, int64 [rows], -1 where the logits are unusable; log-probabilities of the rows
            in ``draws.rows.asked``, None if there are none.
        """
        if draws.rows.likeliest:
            chosen = confidence.argmax
        else:
            usable = torch.where(confidence.valid[:, None], logits, 0.0)
            if draws.edits:
                usable = self._backend.editable(usable, self.vocabulary)
                self._edit(usable, draws.edits.on(logits.device), last)
            chosen = self._backend.sample(usable, self.vocabulary, draws_of(columns), self._fused)
        if draws.rows.verified:
            chosen = _standing(logits, confidence, columns, chosen)
        chosen = torch.where(confidence.valid, chosen, -1)
        return chosen, self._logprobs(logits, chosen, draws.rows, columns)

    def _edit(self, usable: Tensor, chunks: dict[int, dict[str, Tensor]], last: Tensor) -> None:
        """Apply penalties, biases and bans to logits, in place."""
        banned = chunks.pop(_BANS, None)
        for arrays in chunks.values():
            part = usable.index_select(0, arrays["index"])
            changed = self._backend.penalise(part, self.vocabulary, penalties_of(arrays, last))
            changed = changed.clamp(max=torch.finfo(usable.dtype).max).to(usable.dtype)
            usable[:, : self.vocabulary].index_copy_(0, arrays["index"], changed)
        if banned:
            never = usable.new_full((), -torch.inf)
            usable.index_put_(tuple(banned["banned"].long()), never)

    def _logprobs(
        self, logits: Tensor, chosen: Tensor, rows: SampledRows, columns: Mapping[str, Tensor]
    ) -> ops.LogProbs | None:
        if not rows.asked:
            return None
        found, count = [], max(rows.asked.values())
        for index in columns["asked"].split(self._rows_at_once):
            tokens = chosen.index_select(0, index).clamp(min=0)
            part = logits.index_select(0, index)
            found.append(self._backend.token_logprobs(part, self.vocabulary, tokens, count))
        return ops.LogProbs(*map(torch.cat, zip(*found, strict=True)))

    def drawn(
        self, tokens: Sequence[int], logprobs: ops.LogProbs | None, rows: SampledRows
    ) -> dict[int, list[Drawn]]:
        """The draws with log-probabilities by sequence id, of the rows in ``rows.asked``; those of
        a sequence in the order of their positions.

        Args:
            tokens: drawn tokens of all rows; rows below 0 were unusable and are left out.
            logprobs: the result of ``choose``, on the host.
        """
        if logprobs is None:
            return {}
        drawn: dict[int, list[Drawn]] = {}
        parts = zip(rows.asked.items(), *(part.tolist() for part in logprobs), strict=True)
        for (i, count), own, top, ids in parts:
            if tokens[i] >= 0:
                entry = TokenLogprobs(own, tuple(zip(ids, top, strict=True))[:count])
                place = int(rows.contexts[i])
                draw = Drawn(place, self._model, tokens[i], entry)
                drawn.setdefault(int(rows.ids[i]), []).append(draw)
        return drawn

    def _chunks(self, rows: list[int]) -> list[list[int]]:
        size = self._rows_at_once
        return [rows[i : i + size] for i in range(0, len(rows), size)]


def _standing(
    logits: Tensor, confidence: ops.Confidence, columns: Mapping[str, Tensor], chosen: Tensor
) -> Tensor:
    """The draws, but for rows whose guess stands the guess; see ``Speculation.mark``."""
    at, guess = columns["verified"], columns["guess"]
    own = logits[at, guess].float()
    stands = own - confidence.max_logit.index_select(0, at) >= columns["least"].float()
    drawn = chosen.index_select(0, at)
    return chosen.index_copy(0, at, torch.where(stands, guess, drawn))
