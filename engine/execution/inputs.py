"""What the ticks of one lane read: whole numbers in a static buffer, filled by one copy a tick."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine import _core
from engine.device.device_queue import Ticket
from engine.execution.scoring import AuditRows

_UNIT = 4  # numbers: regions start at 16 bytes, as the kernels expect of what they read
_NONE = np.empty(0, np.int32)
_LEAST_ROWS = 16  # of a filled tick with spans: fewer take as long


@dataclass(frozen=True)
class TickLimits:
    """The biggest tick. ``width``: blocks of a sequence. ``filled``: rows of the biggest tick with
    spans that is filled up; 0 fills up decodes only."""

    sequences: int
    rows: int
    width: int
    filled: int = 0


@dataclass(frozen=True)
class Extent:
    """The size of a tick, which says where everything lies in the buffer.

    width: blocks of a sequence. sampled: rows that go through the head.
    padded: filled up to this size; the last row of each sequence goes through the head.
    spans: whether a padded tick has sequences of more than one row.
    """

    sequences: int
    rows: int
    sampled: int
    width: int
    padded: bool = False
    spans: bool = False

    @classmethod
    def filled(cls, sequences: int, rows: int, limits: TickLimits) -> Extent | None:
        """The size that a tick is filled up to; None if it is too big for that.

        There are few: decodes go by powers of two. With spans rows do, and sequences by powers of
        four, which costs next to nothing: one tile of the head takes up to 16, 64 or 128 rows.
        """
        bits = (sequences - 1).bit_length()
        if rows == sequences:
            full = min(1 << bits, limits.sequences)
            return cls(full, full, full, limits.width, padded=True)
        if rows > limits.filled:
            return None
        most = max(_LEAST_ROWS, 1 << (rows - 1).bit_length())
        most = min(most, limits.filled, limits.rows)
        full = min(1 << (bits + bits % 2), limits.sequences, most)
        return cls(full, most, full, limits.width, padded=True, spans=True)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each region, in their order."""
        rows = (self.rows,)
        return {
            "tokens": rows, "positions": rows, "slots": rows, "starts": (self.sequences + 1,),
            "contexts": (self.sequences,), "sampled": (self.sampled,),
            "table": (self.sequences, self.width),
        }  # fmt: skip


@lru_cache(256)
def _places(extent: Extent) -> tuple[dict[str, slice], int]:
    """Where each region lies, and where the first number behind them does."""
    found, end = {}, 0
    for name, shape in extent.shapes.items():
        size = int(np.prod(shape))
        found[name] = slice(end, end + size)
        end += -(-size // _UNIT) * _UNIT
    return found, end


@dataclass(frozen=True)
class TickViews:
    """Views of the buffer, int32.

    tokens: [rows]; below 0: the token that sequence ``-1 - token`` of the tick before drew.
    positions, slots: [rows]. starts: [sequences + 1]. contexts: [sequences].
    sampled: [sampled], rows that go through the head.
    table: [sequences, width], block ids.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    starts: Tensor
    contexts: Tensor
    sampled: Tensor
    table: Tensor


@dataclass
class Staged:
    """A tick's numbers on the host; behind them the plan rows that draw, the tokens that audited
    rows foretell, and the block copies."""

    extent: Extent
    memory: Tensor
    length: int
    wanted: slice
    targets: slice
    copies: slice


class TickInputs:
    """The buffer on the device, and as many on the host as ticks can be planned at once."""

    def __init__(self, device: torch.device, sequences: int, rows: int, width: int) -> None:
        """Sizes are those of the biggest tick."""
        behind = 3 * sequences + rows + 3 * _UNIT
        size = _places(Extent(sequences, rows, rows, width))[1] + behind
        self.buffer = torch.zeros(size, dtype=torch.int32, device=device)
        pinned = device.type == "cuda"
        self._host = [torch.zeros(size, dtype=torch.int32, pin_memory=pinned) for _ in range(2)]
        self._tickets: list[Ticket | None] = [None, None]
        self._turn = 0

    def stage(
        self,
        plan: _core.Plan,
        extent: Extent,
        wanted: npt.NDArray[np.intp],
        scored: AuditRows | None = None,
    ) -> Staged:
        """Write a plan into the next host buffer; waits if the device has not read it yet."""
        memory = self._next()
        _, end = _places(extent)
        extra, known = (scored.rows, scored.targets) if scored else (_NONE, _NONE)
        behind = _behind(end, len(wanted))
        targets = _behind(behind.stop, len(known))
        copies = _behind(targets.stop, 2 * plan.copied)
        numbers = memory.numpy()
        _fill(numbers, plan, extent, wanted, extra)
        numbers[behind] = wanted
        numbers[targets] = known
        if plan.copied:
            numbers[copies] = plan.copies[: plan.copied].ravel()
        return Staged(extent, memory, copies.stop, behind, targets, copies)

    def stage_padding(self, extent: Extent) -> Staged:
        """As :meth:`stage`, a tick in which no row belongs to a sequence and none writes KV."""
        memory, (places, end) = self._next(), _places(extent)
        numbers = memory.numpy()
        numbers[:end] = 0
        numbers[places["slots"]] = -1
        nothing = slice(end, end)
        return Staged(extent, memory, end, nothing, nothing, nothing)

    def _next(self) -> Tensor:
        self._turn ^= 1
        ticket = self._tickets[self._turn]
        if ticket is not None:
            with suppress(Exception):  # over is enough
                ticket.wait()
            self._tickets[self._turn] = None
        return self._host[self._turn]

    def sent(self, ticket: Ticket) -> None:
        """The staged numbers are free again once ``ticket`` is done."""
        self._tickets[self._turn] = ticket

    def upload(self, staged: Staged) -> None:
        """Bring a tick's numbers to the device."""
        source = staged.memory[: staged.length]
        self.buffer[: staged.length].copy_(source, non_blocking=True)

    def views(self, extent: Extent) -> TickViews:
        """Where work that is recorded reads a tick of this size."""
        places, _ = _places(extent)
        parts = {name: self.buffer[place] for name, place in places.items()}
        parts["table"] = parts["table"].view(extent.sequences, extent.width)
        return TickViews(**parts)

    def region(self, place: slice) -> Tensor:
        """What stands behind a tick's views."""
        return self.buffer[place]


def _behind(end: int, size: int) -> slice:
    """The next region."""
    first = -(-end // _UNIT) * _UNIT
    return slice(first, first + size)


def _fill(
    numbers: npt.NDArray[np.int32],
    plan: _core.Plan,
    extent: Extent,
    wanted: npt.NDArray[np.intp],
    extra: npt.NDArray[np.int32],
) -> None:
    """``extra``: further rows that go through the head."""
    n, rows, (places, _) = plan.sequences, plan.rows, _places(extent)
    starts = plan.starts[: n + 1]
    ends = starts[1:] - 1
    last = ends if extent.padded else np.concatenate([ends[wanted], extra])
    for name, values, padding in (
        ("tokens", plan.tokens[:rows], 0), ("positions", plan.positions[:rows], 0),
        ("slots", plan.slots[:rows], -1), ("starts", starts, rows),
        ("contexts", plan.contexts[:n], 0), ("sampled", last, 0),
    ):  # fmt: skip
        region = numbers[places[name]]
        region[: len(values)] = values
        region[len(values) :] = padding
    # Rows of the table behind the last sequence are never read.
    table = numbers[places["table"]].reshape(extent.sequences, extent.width)
    table[:n] = plan.blocks[:n, : extent.width]
