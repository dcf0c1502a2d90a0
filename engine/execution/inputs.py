"""The inputs of one lane's ticks: int32 numbers in a static buffer, filled by one copy a tick."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine import _core
from engine.device.device_queue import Ticket
from engine.execution.draw_arguments import COLUMN_WORDS, COLUMNS
from engine.execution.regions import UNIT, Array, Region, region_after, write_regions
from engine.execution.sampled_rows import DrawnRows
from engine.execution.scoring import ScoredRows

_NONE = np.empty(0, np.int32)
_LEAST_ROWS = 16  # least rows of a padded tick with spans: fewer take as long


@dataclass(frozen=True)
class TickLimits:
    """The sizes of the largest tick.

    sequences, rows: their number.
    width: most blocks of a sequence.
    filled: most rows of a tick with prefill spans that is padded; 0 pads decodes only.
    drawn: most rows that are sampled from.
    """

    sequences: int
    rows: int
    width: int
    filled: int = 0
    drawn: int = 0


@dataclass(frozen=True)
class Extent:
    """The size of a tick, which fixes the layout of the buffer.

    sequences, rows: their number.
    sampled: rows that go through the head.
    width: most blocks of a sequence.
    padded: whether the tick is padded to this size; every sequence's last row then goes through the
        head.
    spans: whether a padded tick has sequences of more than one row.
    all_rows: whether all rows of a padded tick go through the head, as guesses are verified.
    """

    sequences: int
    rows: int
    sampled: int
    width: int
    padded: bool = False
    spans: bool = False
    all_rows: bool = False

    @classmethod
    def filled(
        cls, sequences: int, rows: int, limits: TickLimits, all_rows: bool = False
    ) -> Extent | None:
        """The size that a tick is padded to; None if it is too large for that.

        There are few sizes: powers of two for decodes. With spans, rows are padded to powers of
        two, and sequences to powers of four, which costs little: one tile of the head computes up
        to 16, 64 or 128 rows.
        """
        bits = (sequences - 1).bit_length()
        if rows == sequences:
            full = min(1 << bits, limits.sequences)
            return cls(full, full, full, limits.width, padded=True)
        if rows > limits.filled:
            return None
        most = max(_LEAST_ROWS, 1 << (rows - 1).bit_length())
        most = min(most, limits.filled, limits.rows)
        if all_rows:
            if rows > limits.drawn:
                return None
            most = min(most, limits.drawn)
        full = min(1 << (bits + bits % 2), limits.sequences, most)
        heads = most if all_rows else full
        return cls(full, most, heads, limits.width, padded=True, spans=True, all_rows=all_rows)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the regions by name, in their order in the buffer."""
        rows = (self.rows,)
        return {
            "tokens": rows,
            "positions": rows,
            "slots": rows,
            "starts": (self.sequences + 1,),
            "contexts": (self.sequences,),
            "sampled": (self.sampled,),
            "table": (self.sequences, self.width),
        }


@lru_cache(256)
def _places(extent: Extent) -> tuple[dict[str, slice], int]:
    """The place of each region by name, and the first place after all of them."""
    places, end = {}, 0
    for name, shape in extent.shapes.items():
        size = int(np.prod(shape))
        places[name] = slice(end, end + size)
        end += -(-size // UNIT) * UNIT
    return places, end


@dataclass(frozen=True)
class TickViews:
    """Views of the buffer, int32.

    tokens: [rows]; a number t < 0 stands for the token that sequence -1 - t of the lane's previous
        tick drew.
    positions: [rows], in the sequence.
    slots: [rows], where keys and values are written: block * block_tokens + offset; -1 in padding.
    starts: [sequences + 1], first row of each sequence, and the number of rows.
    contexts: [sequences], tokens of each sequence, this tick's rows included.
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
    """A tick's numbers in a host buffer.

    extent: its size, which fixes the places of the :class:`TickViews`.
    memory, length: the buffer, int32, and how many of its numbers are used.
    wanted, rows, targets, copies: after the views: places of the sequences that are sampled, of
        their sampled rows, of the tokens that scored rows predict, and of the block copies.
    draws: then, by name, the columns that the draws need.
    """

    extent: Extent
    memory: Tensor
    length: int
    wanted: slice
    rows: slice
    targets: slice
    copies: slice
    draws: dict[str, Region] = field(default_factory=dict)


class TickInputs:
    """The buffer on the device, and two on the host: so many ticks can be planned at once."""

    def __init__(self, device: torch.device, sequences: int, rows: int, width: int) -> None:
        """Sizes are those of the largest tick."""
        # A sequence may draw from several rows.
        after_views = (3 + COLUMN_WORDS) * rows + 2 * sequences + (4 + COLUMNS) * UNIT
        size = _places(Extent(sequences, rows, rows, width))[1] + after_views
        self.buffer = torch.zeros(size, dtype=torch.int32, device=device)
        pinned = device.type == "cuda"
        self._host = [torch.zeros(size, dtype=torch.int32, pin_memory=pinned) for _ in range(2)]
        self._tickets: list[Ticket | None] = [None, None]
        self._turn = 0

    def stage(
        self,
        plan: _core.Plan,
        extent: Extent,
        drawn: DrawnRows,
        scored: ScoredRows | None = None,
        columns: Mapping[str, Array] | None = None,
    ) -> Staged:
        """Write a plan and its draws' columns into the next host buffer; wait if the device has not
        read that yet."""
        memory = self._next()
        _, end = _places(extent)
        extra, known = (scored.rows, scored.targets) if scored else (_NONE, _NONE)
        drawing = region_after(end, len(drawn.sequences))
        picked = region_after(drawing.stop, len(drawn.rows))
        targets = region_after(picked.stop, len(known))
        copies = region_after(targets.stop, 2 * plan.copied)
        numbers = memory.numpy()
        _fill(numbers, plan, extent, drawn, extra)
        numbers[drawing] = drawn.sequences
        numbers[picked] = drawn.rows
        numbers[targets] = known
        if plan.copied:
            numbers[copies] = plan.copies[: plan.copied].ravel()
        draws, end = write_regions(numbers, copies.stop, columns or {})
        return Staged(extent, memory, end, drawing, picked, targets, copies, draws)

    def stage_padding(self, extent: Extent) -> Staged:
        """Like :meth:`stage`, for a tick of padding only: no row writes KV."""
        memory, (places, end) = self._next(), _places(extent)
        numbers = memory.numpy()
        numbers[:end] = 0
        numbers[places["slots"]] = -1
        nothing = slice(end, end)
        return Staged(extent, memory, end, nothing, nothing, nothing, nothing)

    def _next(self) -> Tensor:
        self._turn ^= 1
        ticket = self._tickets[self._turn]
        if ticket is not None:
            with suppress(Exception):  # a failed tick does not read the buffer any more either
                ticket.wait()
            self._tickets[self._turn] = None
        return self._host[self._turn]

    def sent(self, ticket: Ticket) -> None:
        """Note the ticket of the last staged tick: its host buffer is free when that is done."""
        self._tickets[self._turn] = ticket

    def upload(self, staged: Staged) -> None:
        """Copy a tick's numbers to the device."""
        source = staged.memory[: staged.length]
        self.buffer[: staged.length].copy_(source, non_blocking=True)

    def views(self, extent: Extent) -> TickViews:
        """Views of a tick of this size, at fixed addresses, as recorded work needs."""
        places, _ = _places(extent)
        parts = {name: self.buffer[place] for name, place in places.items()}
        parts["table"] = parts["table"].view(extent.sequences, extent.width)
        return TickViews(**parts)

    def region(self, place: slice) -> Tensor:
        """A region after a tick's views: int32."""
        return self.buffer[place]

    def draws(self, staged: Staged) -> dict[str, Tensor]:
        """Views of a tick's columns by name, until the next tick is uploaded."""
        return {name: region.of(self.buffer) for name, region in staged.draws.items()}


def _fill(
    numbers: npt.NDArray[np.int32],
    plan: _core.Plan,
    extent: Extent,
    drawn: DrawnRows,
    extra: npt.NDArray[np.int32],
) -> None:
    """Write a plan into the regions of ``numbers``; ``extra``: further rows for the head."""
    n, rows, (places, _) = plan.sequences, plan.rows, _places(extent)
    starts = plan.starts[: n + 1]
    heads = starts[1:] - 1 if extent.padded else np.concatenate([drawn.rows, extra])
    if extent.all_rows:
        heads = np.arange(extent.rows, dtype=np.int32)
    for name, values, padding in (
        ("tokens", plan.tokens[:rows], 0),
        ("positions", plan.positions[:rows], 0),
        ("slots", plan.slots[:rows], -1),
        ("starts", starts, rows),
        ("contexts", plan.contexts[:n], 0),
        ("sampled", heads, 0),
    ):
        region = numbers[places[name]]
        region[: len(values)] = values
        region[len(values) :] = padding
    # Rows of the table after the last sequence are never read.
    table = numbers[places["table"]].reshape(extent.sequences, extent.width)
    table[:n] = plan.blocks[:n, : extent.width]
