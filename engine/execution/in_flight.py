"""A tick on its way through the device, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from engine.device.device_queue import Ticket
from engine.execution.logprobs import Drawn
from engine.execution.scoring import AuditRows
from engine.routing.signals import Signals
from kernels import ops

# Rows of the packed result, fp32; then the token's int32 bits.
STATISTICS = ("entropy", "max_prob", "log_odds", "margin", "max_logit", "logsumexp")


@dataclass(frozen=True)
class TickResult:
    """What a forward pass gave for each sequence of a plan.

    tokens: int32 [sequences]; -1 where the logits were unusable, 0 where none were wanted.
    statistics: fp32 [len(STATISTICS), sampled rows].
    drawn: by sequence id, where log-probabilities are asked for and the logits were usable.
    audited: by plan row, (position, log-probability) of tokens that were there already.
    """

    tokens: npt.NDArray[np.int32]
    statistics: npt.NDArray[np.float32]
    drawn: dict[int, Drawn]
    audited: dict[int, list[tuple[int, float]]]
    _order: dict[int, int]  # plan row -> column of the statistics

    @property
    def sampled(self) -> list[int]:
        """The plan rows whose logits were sampled."""
        return list(self._order)

    def signals(self, row: int) -> Signals:
        """The boundary statistics of one plan row that was sampled."""
        values = self.statistics[:, self._order[row]].tolist()
        return Signals(**dict(zip(STATISTICS, values, strict=True)))


class InFlightTick:
    """A tick that was launched. Ticks of a lane end in the order in which they were launched."""

    def __init__(
        self,
        sequences: int,
        wanted: npt.NDArray[np.intp],
        columns: npt.NDArray[np.intp],
        drawn: Callable[[list[int], ops.LogProbs | None], dict[int, Drawn]],
        scored: AuditRows | None = None,
    ) -> None:
        """
        Args:
            sequences: of the plan.
            wanted: its rows that are sampled.
            columns: where each of them is in the packed result.
            drawn: makes log-probabilities on the host those of sequences.
            scored: rows of an audit.
        """
        self.ticket: Ticket | None = None
        self.packed: Tensor | None = None  # on the host once the ticket is done
        self.scores: ops.LogProbs | None = None  # likewise
        self.audited: Tensor | None = None  # likewise
        self._scored = scored
        self._sequences = sequences
        self._wanted = wanted
        self._columns = columns
        self._drawn = drawn
        self._result: TickResult | None = None

    def done(self) -> bool:
        """Whether ``result`` would not wait."""
        return self.ticket is not None and self.ticket.done()

    def result(self) -> TickResult:
        """Waits for the tick."""
        if self._result is None:
            assert self.ticket is not None
            self.ticket.wait()
            assert self.packed is not None
            host = self.packed.numpy()[:, self._columns]
            tokens = np.zeros(self._sequences, np.int32)
            tokens[self._wanted] = host[-1]
            drawn = self._drawn(host[-1].tolist(), self.scores)
            order = {int(row): i for i, row in enumerate(self._wanted)}
            self._result = TickResult(
                tokens, host[:-1].view(np.float32), drawn, self._audit(), order
            )
        return self._result

    def _audit(self) -> dict[int, list[tuple[int, float]]]:
        if self._scored is None or self.audited is None:
            return {}
        return self._scored.found(self.audited.numpy())
