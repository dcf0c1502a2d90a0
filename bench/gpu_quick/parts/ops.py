"""Part 2: every op against fp64, and whether this part would detect a wrong kernel."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from bench.gpu_quick.checks.arena import attentions, copies, rope_kvs
from bench.gpu_quick.checks.check import Check, Outputs, failures
from bench.gpu_quick.checks.head import confidences, lm_heads
from bench.gpu_quick.checks.layers import linears, norms, packed, silu_muls
from bench.gpu_quick.checks.tensors import DTYPE, Maker
from bench.gpu_quick.scene import PartFailedError, Scene, first_line
from bench.kernel_bench.card import card_lost
from kernels import ops
from kernels.aot import registry
from kernels.aot.variant import ModelShape

CHECKS: dict[str, Callable[[Maker], Iterator[Check]]] = {
    "confidence": confidences,
    "lm_head": lm_heads,
    "attention": attentions,
    "rope_kv": rope_kvs,
    "copy_blocks": copies,
    "norm": norms,
    "silu_mul": silu_muls,
    "skinny_gemm": linears,
    "packed_gemm": packed,
}
ODD = ModelShape("odd", 899, 1027, 6, 2, 32, 1003)
_SMALLEST = (ModelShape("small", 64, 96, 4, 2, 16, 160), ModelShape("odd", 67, 99, 6, 2, 16, 131))


def run(scene: Scene) -> None:
    """A row for each check; fails once all have run. Ops after one that loses the card are left."""
    # References round logits to the type of their input; the kernels do not.
    head = torch.float32 if scene.quick else DTYPE
    shapes = _SMALLEST if scene.quick else (*scene.shapes, ODD)
    backend = ops.backend_for(scene.device)
    wrong: list[str] = []
    names = scene.pieces(*registry.OPS)
    with scene.writer() as writer:
        for number, op in enumerate(names, 1):
            for row in _rows(op, shapes, scene.device, backend, head):
                writer.write(row)
                wrong += [f"{op} {row['check']} ({row['shape']}): {each}" for each in row["wrong"]]
            if wrong and card_lost():
                raise PartFailedError("\n".join(wrong), rest=names[number:])
    wrong += _unseen(Maker(shapes[-1], scene.device, backend))
    if wrong:
        raise PartFailedError("\n".join(wrong))


def _rows(
    op: str,
    shapes: Sequence[ModelShape],
    device: torch.device,
    backend: ops.Backend,
    head: torch.dtype,
) -> Iterator[dict[str, Any]]:
    """``head``: the type of the LM head."""
    for shape in shapes:
        what = {"bench": "ops", "op": op, "shape": shape.name}
        try:
            for check in CHECKS[op](Maker(shape, device, backend, head)):
                yield {**what, "check": check.name, "wrong": _failures(check)}
        except Exception as error:  # from making the inputs
            yield {**what, "check": "inputs", "wrong": [first_line(error)]}


def _failures(check: Check) -> list[str]:
    try:
        return failures(check)
    except Exception as error:  # the others go on, as far as the card does
        traceback.print_exc()
        return [first_line(error)]


def _unseen(make: Maker) -> list[str]:
    """Broken kernels that these checks would not have detected: there should be none."""
    check = next(norms(make))
    return [
        f"a kernel that {what} was not seen: the checks prove nothing"
        for what, spoil in _SPOILT.items()
        if not failures(replace(check, run=_spoilt(check, spoil)))
    ]


def _spoilt(
    check: Check, spoil: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[Sequence[int]], Outputs]:
    return lambda rows: tuple(spoil(output) for output in check.run(rows))


def _one_wrong(output: torch.Tensor) -> torch.Tensor:
    output[0, -1] = 1.1 * output[0, -1] + 0.1
    return output


def _unwritten(output: torch.Tensor) -> torch.Tensor:
    """The output as a mask that is one row short would leave it."""
    made = torch.empty_like(output)
    made[:-1] = output[:-1]
    return made


def _leaning(output: torch.Tensor) -> torch.Tensor:
    """The output changed by its neighbours, by less than any tolerance."""
    return output * (1 + 2**-7) if len(output) == 1 else output


_SPOILT = {
    "has one element wrong": _one_wrong,
    "leaves a row unwritten": _unwritten,
    "depends on its neighbours": _leaning,
}
