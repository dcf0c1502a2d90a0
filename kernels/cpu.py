"""The CPU kernels: a model's whole forward pass in one call, statistics of logits, and draws.

The compiled module (``csrc/cpu``) knows neither Torch nor Python objects: it gets addresses, and
this file checks what lies there. Products are of rows in the weights' type (fp32 or bf16), sums and
everything between products are fp32. A row's result has the same bits whatever its neighbours are,
however a prefill is cut and however many threads run; not so on another instruction set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from kernels import _cpu
from kernels.checks import check_tensor
from kernels.forks import thread_count
from kernels.types.attention import KVLayout
from kernels.types.sampling import DrawRows
from kernels.types.statistics import Confidence

DTYPES = (torch.float32, torch.bfloat16)


class Tick(Protocol):
    """Where a batch's keys go and what it reads; see ``AttentionPlan``. All int32."""

    @property
    def layout(self) -> KVLayout: ...
    @property
    def table(self) -> Tensor: ...
    @property
    def starts(self) -> Tensor: ...
    @property
    def contexts(self) -> Tensor: ...
    @property
    def slots(self) -> Tensor: ...


def instruction_sets() -> list[str]:
    """What this machine has kernels for, the fastest first; the last one runs anywhere."""
    return _cpu.instruction_sets()


def takes(embedding: Tensor, rope: Tensor, layers: Sequence[Any]) -> bool:
    """Whether there are kernels for a model with these weights: none are packed yet."""
    found = (getattr(layer, name) for layer in layers for name in _cpu.LAYER_WEIGHTS)
    return (
        embedding.device.type == "cpu"
        and embedding.dtype in DTYPES
        and rope.shape[-1] % 2 == 0
        and rope.shape[-1] <= _cpu.LONGEST_HEAD
        and all(weight is None or isinstance(weight, Tensor) for weight in found)
    )


class ForwardPass:
    """One model's pass from token ids to logits. Has threads of its own, asleep between calls.

    A forked process starts new ones at its first call.
    """

    def __init__(
        self,
        embedding: Tensor,
        norm: Tensor,
        head: Tensor,
        rope: Tensor,
        layers: Sequence[Any],
        heads: int,
        eps: float,
        threads: int | None = None,
        instruction_set: str | None = None,
    ) -> None:
        """The weights are kept, not copied.

        Args:
            embedding: [vocabulary, hidden]; head likewise, and may be the same.
            norm: [hidden], before the head.
            rope: [2, length, head_dim], see ``rope_tables``.
            heads: of the queries.
            eps: of the norms.
            threads: as many as Torch uses if None.
            instruction_set: one of ``instruction_sets()``; the fastest if None.
        """
        self._weights = (embedding, norm, head, *layers)
        dtype, hidden, width = embedding.dtype, embedding.shape[1], rope.shape[-1]
        self._dtype, self._head_dim, self._head_rows = dtype, width, head.shape[0]
        self._hidden = hidden
        self._kv_heads = (layers[0].qkv.shape[0] // width - heads) // 2
        intermediate = layers[0].down.shape[1]
        check_tensor("embedding", embedding, (head.shape[0], hidden), DTYPES)
        check_tensor("head", head, (None, hidden), (dtype,), embedding)
        check_tensor("norm", norm, (hidden,), (dtype,), embedding)
        half = width // 2
        self._turns = rope[:, :, :half].transpose(0, 1).float().contiguous()
        sizes = (
            len(layers),
            hidden,
            heads,
            self._kv_heads,
            width,
            intermediate,
            head.shape[0],
            rope.shape[1],
        )
        self._layers = len(layers)
        self._decoder = _cpu.Decoder(
            dtype == torch.bfloat16,
            instruction_set or instruction_sets()[0],
            threads or thread_count(),
            sizes,
            eps,
            [t.data_ptr() for t in (embedding, norm, head, self._turns)],
            [self._addresses(layer, hidden, heads, intermediate) for layer in layers],
        )

    def _addresses(self, layer: Any, hidden: int, heads: int, intermediate: int) -> list[int]:
        width = self._head_dim
        queries, fused = heads * width, (heads + 2 * self._kv_heads) * width
        shapes: dict[str, tuple[int, ...]] = {
            "attention_norm": (hidden,),
            "qkv": (fused, hidden),
            "output": (hidden, queries),
            "mlp_norm": (hidden,),
            "gate_up": (2 * intermediate, hidden),
            "down": (hidden, intermediate),
            "qkv_bias": (fused,),
            "output_bias": (hidden,),
            "gate_up_bias": (2 * intermediate,),
            "down_bias": (hidden,),
            "query_norm": (width,),
            "key_norm": (width,),
        }
        addresses = []
        for name in _cpu.LAYER_WEIGHTS:
            weight = getattr(layer, name)
            if weight is not None:
                check_tensor(name, weight, shapes[name], (self._dtype,), self._turns)
            addresses.append(0 if weight is None else weight.data_ptr())
        return addresses

    def logits(
        self, tokens: Tensor, positions: Tensor, sampled: Tensor, plan: Tick, arena: Tensor
    ) -> Tensor:
        """As ``split`` with all sampled rows through the head: fp32 [sampled, head_rows]."""
        return self.split(tokens, positions, sampled, plan, arena, 0)[0]

    def split(
        self,
        tokens: Tensor,
        positions: Tensor,
        sampled: Tensor,
        plan: Tick,
        arena: Tensor,
        headless: int,
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values of all rows and give what the sampled ones came to.

        Args:
            tokens: int32 [rows]; positions likewise.
            sampled: int32, the rows that are wanted.
            plan: int32 tensors; rows past the last sequence and slots of -1 are padding.
            arena: [arena_rows, head_dim], written in place.
            headless: of the sampled rows, the last so many stop before the head.

        Returns:
            Logits, fp32 [sampled - headless, head_rows]; and of the others what the head is to be
            multiplied with, [headless, hidden] in the weights' type.
        """
        layout, rows, width = plan.layout, len(tokens), self._head_dim
        check_tensor("arena", arena, (None, width), (self._dtype,), self._turns)
        if (layout.kv_heads, layout.head_dim, layout.layers) != (
            self._kv_heads,
            width,
            self._layers,
        ):
            raise ValueError("layout is of another model")
        buffers = {
            "tokens": (tokens, (rows,)),
            "positions": (positions, (rows,)),
            "slots": (plan.slots, (rows,)),
            "starts": (plan.starts, (len(plan.contexts) + 1,)),
            "contexts": (plan.contexts, (None,)),
            "table": (plan.table, (len(plan.contexts), None)),
            "sampled": (sampled, (None,)),
        }
        for name, (buffer, shape) in buffers.items():
            check_tensor(name, buffer, shape, (torch.int32,), self._turns)
        if not 0 <= headless <= len(sampled):
            raise ValueError(f"headless must be in 0..{len(sampled)}, got {headless}")
        logits = torch.empty(len(sampled) - headless, self._head_rows)
        hidden = torch.empty(headless, self._hidden, dtype=self._dtype)
        self._decoder.forward(
            [buffer.data_ptr() for buffer, _ in buffers.values()],
            (rows, len(plan.contexts), plan.table.shape[1], len(sampled), headless),
            (layout.block_tokens, layout.slots, layout.slab_rows * width, arena.numel()),
            arena.data_ptr(),
            logits.data_ptr(),
            hidden.data_ptr(),
        )
        return logits, hidden

    def head_logits(self, hidden: Tensor) -> Tensor:
        """Logits, fp32 [rows, head_rows], of what ``split`` gave instead of them.

        hidden: [rows, hidden] in the weights' type.
        """
        check_tensor("hidden", hidden, (None, self._hidden), (self._dtype,), self._turns)
        logits = torch.empty(len(hidden), self._head_rows)
        if len(hidden):
            self._decoder.head(hidden.data_ptr(), len(hidden), logits.data_ptr())
        return logits

    def attended(self, plan: Tick) -> int:
        """Pairs of query and key that attention works on: spans are taken in stretches of rows."""
        spans = (plan.starts[1:] - plan.starts[:-1]).long()
        before = plan.contexts - spans
        rows = _cpu.QUERY_ROWS
        whole, rest = spans // rows, spans % rows
        pairs = rows * (whole * before + rows * whole * (whole + 1) // 2)
        return int((pairs + rest * plan.contexts).sum())


def confidence(logits: Tensor, vocabulary: int, instruction_set: str | None = None) -> Confidence:
    """Statistics of each row; see ``kernels.reference.confidence.confidence``.

    Args:
        logits: fp32 [rows, head_rows] on the CPU.
        vocabulary: ids from here on are padding of the head and take no part.
        instruction_set: one of ``instruction_sets()``; the fastest if None.
    """
    check_tensor("logits", logits, (None, None), (torch.float32,), contiguous=False)
    rows, head_rows = logits.shape
    if not 0 < vocabulary <= head_rows:
        raise ValueError(f"vocabulary must be in 1..{head_rows}, the head's rows; got {vocabulary}")
    floats = torch.empty(len(_cpu.STATISTICS), rows)
    ids = torch.empty(rows, dtype=torch.int64)
    valid = torch.empty(rows, dtype=torch.bool)
    _cpu.confidence(
        instruction_set or instruction_sets()[0],
        logits.data_ptr(),
        rows,
        logits.stride(0),
        vocabulary,
        floats.data_ptr(),
        ids.data_ptr(),
        valid.data_ptr(),
    )
    named = dict(zip(_cpu.STATISTICS, floats.unbind(), strict=True))
    return Confidence(**named, argmax=ids, valid=valid)


def draw(
    logits: Tensor, vocabulary: int, rows: DrawRows, instruction_set: str | None = None
) -> Tensor:
    """One token id a row, int64 [rows]; see ``kernels.reference.sampling.sample``.

    Args:
        logits: fp32 or fp64 [rows, head_rows] on the CPU.
        vocabulary: ids from here on are padding of the head and take no part.
        rows: how to draw.
        instruction_set: one of ``instruction_sets()``; the fastest if None.
    """
    types = (torch.float32, torch.float64)
    check_tensor("logits", logits, (None, None), types, contiguous=False)
    if not 0 < vocabulary <= logits.shape[1]:
        raise ValueError(
            f"vocabulary must be in 1..{logits.shape[1]}, the head's rows; got {vocabulary}"
        )
    rows.check(logits)
    columns = (rows.temperature, rows.key, rows.counter, rows.top_k, rows.top_p, rows.min_p)
    tokens = torch.empty(len(logits), dtype=torch.int64)
    _cpu.draw(
        instruction_set or instruction_sets()[0],
        logits.dtype == torch.float64,
        logits.data_ptr(),
        len(logits),
        logits.stride(0),
        vocabulary,
        [0 if column is None else column.data_ptr() for column in columns],
        tokens.data_ptr(),
    )
    return tokens
