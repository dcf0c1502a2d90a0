"""A tick from its plan, through the device, to its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.device.device_queue import Ticket
from engine.device.host_offload import OffloadCopies
from engine.execution.inputs import Extent, Staged
from engine.execution.logprobs import Drawn
from engine.execution.sampled_rows import DrawnRows
from engine.execution.sampler import PreparedDraws
from engine.execution.scoring import ScoredRows
from engine.request import TokenLogprobs
from engine.routing.signals import SIGNAL_NAMES, Signals
from kernels import ops


@dataclass(frozen=True)
class TickPlan:
    """A plan, copied from the scheduler's buffers.

    staged: its numbers on the host, those that its draws need included.
    draws: how its sampled rows draw.
    work, attention_pairs: bounds of attention's work, and its pairs of query and key.
    resolves: whether some of its tokens are those drawn by the tick before.
    scored: rows whose next tokens are known and scored, if any.
    offload: copies of KV to host memory and back, if there is any.
    """

    staged: Staged
    draws: PreparedDraws
    work: ops.Work
    attention_pairs: int
    resolves: bool
    scored: ScoredRows | None
    offload: OffloadCopies | None

    @property
    def plain(self) -> bool:
        """Whether only signals and the likeliest tokens are needed."""
        return self.draws.rows.plain and self.scored is None

    @property
    def extent(self) -> Extent:
        """Its size."""
        return self.staged.extent


@dataclass(frozen=True)
class TickResult:
    """The result of a forward pass for the sequences of a plan.

    tokens: int32 [draws of the plan], as the commit takes them; -1 where the logits were unusable,
        0 for sequences that are not sampled.
    signal_table: fp32 [signals in the order of ``SIGNAL_NAMES``, sampled rows].
    drawn: drawn tokens with log-probabilities by sequence id, if requested and the logits were
        usable; several where guesses were verified.
    audited: by plan row, (position, log-probability) of audited tokens.
    prompts: by plan row, (position, log-probabilities) of tokens of the prompt.
    """

    tokens: npt.NDArray[np.int32]
    signal_table: npt.NDArray[np.float32]
    drawn: dict[int, list[Drawn]]
    audited: dict[int, list[tuple[int, float]]]
    prompts: dict[int, list[tuple[int, TokenLogprobs]]]
    _order: dict[int, int]  # plan row -> column of the signal table, of its first draw

    @property
    def sampled(self) -> list[int]:
        """The sampled plan rows."""
        return list(self._order)

    def signals(self, row: int, draw: int = 0) -> Signals:
        """The signals of one plan row that was sampled; ``draw``: of which of its draws."""
        values = self.signal_table[:, self._order[row] + draw].tolist()
        return Signals(**dict(zip(SIGNAL_NAMES, values, strict=True)))


def pack(confidence: ops.Confidence, tokens: Tensor) -> Tensor:
    """A tick's results as one tensor, so that one copy brings them to the host.

    Args:
        confidence: signals, fp32 [rows] each.
        tokens: int32 [rows].

    Returns:
        int32 [signals + 1, rows]: the signals' bits in the order of ``SIGNAL_NAMES``, then tokens.
    """
    signals = torch.stack([getattr(confidence, name) for name in SIGNAL_NAMES])
    return torch.cat([signals.view(torch.int32), tokens[None]])


class InFlightTick:
    """A launched tick. Ticks of a lane finish in the order of their launch.

    ticket, packed, scores, audited, prompts: set by the launch; the tensors are on the host and
        complete when the ticket is done. packed: see :func:`pack`.
    """

    def __init__(
        self,
        draws: int,
        rows: DrawnRows,
        columns: npt.NDArray[np.intp],
        drawn: Callable[[list[int], ops.LogProbs | None], dict[int, list[Drawn]]],
        scored: ScoredRows | None = None,
    ) -> None:
        """
        Args:
            draws: tokens that the plan's commit takes.
            rows: its rows that are sampled.
            columns: their columns in the packed result.
            drawn: turns tokens and log-probabilities on the host into draws by sequence id.
            scored: rows whose next tokens are known and scored, if any.
        """
        self.ticket: Ticket | None = None
        self.packed: Tensor | None = None
        self.scores: ops.LogProbs | None = None
        self.audited: Tensor | None = None
        self.prompts: ops.LogProbs | None = None
        self._scored = scored
        self._draws = draws
        self._rows = rows
        self._columns = columns
        self._drawn = drawn
        self._result: TickResult | None = None

    def done(self) -> bool:
        """Whether ``result`` returns without waiting."""
        return self.ticket is not None and self.ticket.done()

    def result(self) -> TickResult:
        """Wait for the tick and return its result. Raises what the tick's work raised."""
        if self._result is None:
            assert self.ticket is not None
            self.ticket.wait()
            assert self.packed is not None
            host = self.packed.numpy()[:, self._columns]
            tokens = np.zeros(self._draws, np.int32)
            tokens[self._rows.places] = host[-1]
            drawn = self._drawn(host[-1].tolist(), self.scores)
            order: dict[int, int] = {}
            for i, sequence in enumerate(self._rows.sequences.tolist()):
                order.setdefault(sequence, i)
            self._result = TickResult(
                tokens, host[:-1].view(np.float32), drawn, *self._known(), order
            )
        return self._result

    def first_tokens(self) -> npt.NDArray[np.int32]:
        """int32 [sequences, up to the last one that is sampled]: the first token of each, or 0."""
        tokens = self.result().tokens
        sequences, first = np.unique(self._rows.sequences, return_index=True)
        found = np.zeros(1 + max(sequences, default=-1), np.int32)
        found[sequences] = tokens[self._rows.places[first]]
        return found

    def _known(
        self,
    ) -> tuple[dict[int, list[tuple[int, float]]], dict[int, list[tuple[int, TokenLogprobs]]]]:
        """What was scored, of audits and of prompts."""
        scored = self._scored
        if scored is None or self.audited is None or self.prompts is None:
            return {}, {}
        audited = scored.by_sequence(self.audited.numpy())
        return audited, scored.prompts_by_sequence(self.prompts)
