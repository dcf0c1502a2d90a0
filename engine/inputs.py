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
from engine.queue import Ticket
from engine.scoring import Scored

_UNIT = 4  # numbers: regions start at 16 bytes, as the kernels expect of what they read
_NONE = np.empty(0, np.int32)


@dataclass(frozen=True)
class Extent:
    """The size of a tick, which says where everything lies in the buffer.

    width: blocks of a sequence. sampled: rows that go through the head.
    padded: sequences are decodes, filled up to ``sequences``; each row goes through the head.
    """

    sequences: int
    rows: int
    sampled: int
    width: int
    padded: bool = False

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
        scored: Scored | None = None,
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
    ends = np.concatenate([starts[1:][wanted] - 1, extra])
    last = np.arange(extent.sampled) if extent.padded else ends
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
