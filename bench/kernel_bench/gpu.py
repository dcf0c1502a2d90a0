"""Times cases on a GPU, inside graphs, against the measured limits of this card.

Every figure is microseconds per call over the replays of a graph of many calls. ``cold`` cycles
through sets of inputs that together are twice the L2 cache; if a set is so small that this would
take too many, there is no cold row, and in a model such inputs are hot anyway. ``hot`` repeats one
set; if one set alone is twice the cache, it is never hot, and there is no hot row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor
from tqdm import tqdm

from bench.kernel_bench import rivals
from bench.kernel_bench.card import Call, Card, CardLostError, CardTimer, first_line
from bench.kernel_bench.case import Case, CaseMaker
from bench.kernel_bench.cases import CASES, CasesOf
from bench.stats import percentiles
from bench.table import render
from kernels.aot.variant import ModelShape

Row = dict[str, Any]
BATCHES = (1, 8, 64)
MOST_SETS = 128
MOST_BYTES = 8 * 2**30  # memory of one case
_GRAPH_CALLS = 40  # at least, so that a replay's own cost is negligible
_GIB = 2**30
_PLAIN = ("torch", "torch.compile")
_OWN = "steer"


@dataclass(frozen=True)
class Extent:
    """What is measured, how much of it, and with what.

    replays: of a case's graph. calls: in the graph, at least.
    alone: our kernel only, without torch, torch.compile and public rivals.
    batches: rows of the cases. maker: the sizes of their other parts.
    cases: by op. rivals: those that are not installed take no part.
    timer: takes the times.
    """

    replays: int
    calls: int = _GRAPH_CALLS
    alone: bool = False
    batches: tuple[int, ...] = BATCHES
    maker: CaseMaker = field(default_factory=CaseMaker)
    cases: Mapping[str, CasesOf] = field(default_factory=lambda: CASES)
    rivals: rivals.Rivals = field(default_factory=lambda: rivals.RIVALS)
    timer: CardTimer = field(default_factory=CardTimer)


def measure(
    ops: Sequence[str],
    shapes: Sequence[ModelShape],
    card: Card,
    extent: Extent,
    wanted: Callable[[Case], bool] = lambda case: True,
) -> Iterator[Row]:
    """Rows for every wanted case of the ops and models as they come: our kernel, torch,
    torch.compile, and public rivals where they are installed.

    If our kernel fails its row has an ``error`` and no times, and the others go on.

    Raises:
        CardLostError: the card no longer answers, so every other case would fail, too.
    """
    cases = fitting_cases(ops, shapes, card, extent, wanted)
    for model, case in tqdm(cases, "bench.kernels"):
        try:
            yield from _measure_case(model, case, card, extent)
        except CardLostError:
            raise
        except Exception as error:  # from making its arguments, as where memory runs out
            yield _failure(model, case, card, _own(case), "", error)
        extent.timer.check()
        torch.cuda.empty_cache()


def fitting_cases(
    ops: Sequence[str],
    shapes: Sequence[ModelShape],
    card: Card,
    extent: Extent,
    wanted: Callable[[Case], bool] = lambda case: True,
) -> list[tuple[str, Case]]:
    """Names of models and their wanted cases; those that need too much memory are left out, each
    with a line on standard error."""
    return [
        (shape.name, case)
        for shape in shapes
        for op in ops
        if op in extent.cases
        for batch in extent.batches
        for case in extent.cases[op](shape, batch, extent.maker)
        if wanted(case) and _fits(shape.name, case, card)
    ]


def _fits(model: str, case: Case, card: Card) -> bool:
    """Whether the case fits MOST_BYTES; prints a line if it does not."""
    needed = case.roofline.bytes + 2 * card.l2_bytes + case.scratch
    if needed > MOST_BYTES:
        where = f"{case.op} {case.name} {model}, {case.rows} rows, context {case.context}"
        sizes = f"needs {needed / _GIB:.1f} GiB, at most {MOST_BYTES / _GIB:.1f}"
        print(f"skipped: {where}: {sizes}", file=sys.stderr)
    return needed <= MOST_BYTES


@dataclass(frozen=True)
class _Contestant:
    """prepare: a case's arguments -> a call. note: how its work differs from our kernel's."""

    provider: str
    version: str
    prepare: Callable[..., Call]
    compared: bool = False
    note: str = ""


def _own(case: Case) -> _Contestant:
    return _Contestant(_OWN, triton.__version__, partial(partial, case.kernel))


def _contestants(case: Case, extent: Extent) -> list[_Contestant]:
    if extent.alone:
        return [_own(case)]
    compiled = torch.compile(case.baseline, dynamic=False)
    return [
        _own(case),
        *(
            _Contestant(name, torch.__version__, partial(partial, call), note=note)
            for name, call, note in (
                ("torch", case.baseline, case.note),
                ("torch.compile", compiled, case.note),
                *((name, *part) for name, part in case.parts.items()),
            )
        ),
        *(
            _Contestant(r.package, r.version, r.prepare, r.compared, r.does)
            for r in rivals.of(case.op, case.name, extent.rivals)
        ),
    ]


def _measure_case(model: str, case: Case, card: Card, extent: Extent) -> Iterator[Row]:
    if not extent.alone:
        torch._dynamo.reset()
    inputs = [case.inputs()]
    size = sum(t.nbytes for t in inputs[0] if isinstance(t, Tensor))
    sets = -(-2 * card.l2_bytes // size)
    contestants = _contestants(case, extent)
    for l2 in ("hot", "cold") if sets > 1 else ("cold",):
        if l2 == "cold":
            if sets > MOST_SETS:
                break
            inputs += [case.inputs() for _ in range(sets - 1)]
        for each in tuple(contestants):
            try:
                times = _time(case, each, inputs, extent)
            except Exception as error:  # whatever a kernel raises: the others go on
                contestants.remove(each)
                failure = _failure(model, case, card, each, l2, error)
                if each.provider == _OWN:
                    yield failure
                extent.timer.check()
            else:
                yield _row(model, case, card, each, l2, times)


def _failure(
    model: str, case: Case, card: Card, each: _Contestant, l2: str, error: Exception
) -> Row:
    """A row without times. Also prints a line: for a rival that is the only trace."""
    verb = "failed" if each.provider == _OWN else "left out"
    where = f"{case.op} {case.name} {model}, {case.rows} rows"
    print(f"{verb}: {each.provider} {each.version}, {where}: {first_line(error)}", file=sys.stderr)
    return _what(model, case, card, each, l2) | {"error": first_line(error)}


def _time(
    case: Case, each: _Contestant, inputs: Sequence[tuple[Any, ...]], extent: Extent
) -> tuple[float, float, float]:
    calls = [each.prepare(*arguments) for arguments in inputs]
    if each.compared and not rivals.agree(case.kernel(*inputs[0]), calls[0]()):
        raise ValueError("its result is not ours")
    repeated = calls * -(-extent.calls // len(inputs))
    return percentiles(extent.timer.times(repeated, extent.replays))


def _row(
    model: str,
    case: Case,
    card: Card,
    each: _Contestant,
    l2: str,
    times: tuple[float, float, float],
) -> Row:
    p20, p50, p80 = times
    seconds, roofline = 1e-6 * p50, case.roofline
    return _what(model, case, card, each, l2) | {
        "p20_us": p20,
        "p50_us": p50,
        "p80_us": p80,
        "bytes_per_second": roofline.bytes / seconds,
        "flops_per_second": roofline.flops / seconds,
        "of_copy_floor": roofline.seconds(card.copy_bandwidth, card.peak_flops) / seconds,
        "of_read_floor": roofline.seconds(card.read_bandwidth, card.peak_flops) / seconds,
    }


def _what(model: str, case: Case, card: Card, each: _Contestant, l2: str) -> Row:
    """The fields of a row that say what is timed, and where."""
    return {
        "kind": "gpu",
        "op": case.op,
        "kernel": case.name,
        "model": model,
        "provider": each.provider,
        "version": each.version,
        "note": each.note,
        "rows": case.rows,
        "context": case.context,
        "l2": l2,
        "graph": True,
        "bytes": case.roofline.bytes,
        "flops": case.roofline.flops,
        "triton": triton.__version__,
        **asdict(card),
    }


def show(rows: Sequence[Row], card: Card) -> str:
    """The card in a line, and the table: a line per case, with the rivals' medians."""
    head = (
        f"{card.gpu}, clocks {card.clocks}: copy {card.copy_bandwidth / 1e12:.2f} TB/s, read "
        f"{card.read_bandwidth / 1e12:.2f} TB/s, bf16 {card.peak_flops / 1e12:.0f} TFLOP/s, "
        f"empty node {card.node_us:.2f} us"
    )
    header = (
        "op",
        "kernel",
        "model",
        "rows",
        "context",
        "L2",
        "p20 us",
        "p50 us",
        "p80 us",
        "TB/s",
        "TFLOP/s",
        "of copy floor",
        "of read floor",
        "torch us",
        "torch.compile us",
        "others us",
    )
    cases: dict[tuple[object, ...], dict[str, Row]] = {}
    for r in rows:
        key = (r["op"], r["kernel"], r["model"], r["rows"], r["context"], r["l2"])
        cases.setdefault(key, {})[r["provider"]] = r
    lines = [(*map(str, key), *_figures(found)) for key, found in cases.items()]
    return f"{head}\n\n{render(header, lines)}"


def _figures(found: dict[str, Row]) -> tuple[str, ...]:
    return (
        *_own_figures(found.get(_OWN, {"error": ""})),
        *(f"{found[n]['p50_us']:.2f}" if n in found else "-" for n in _PLAIN),
        " ".join(f"{n} {r['p50_us']:.2f}" for n, r in found.items() if n not in (_OWN, *_PLAIN))
        or "-",
    )


def _own_figures(ours: Row) -> tuple[str, ...]:
    if "error" in ours:
        return ("failed", *"------")
    return (
        *(f"{ours[p]:.2f}" for p in ("p20_us", "p50_us", "p80_us")),
        f"{ours['bytes_per_second'] / 1e12:.2f}",
        f"{ours['flops_per_second'] / 1e12:.1f}",
        f"{ours['of_copy_floor']:.0%}",
        f"{ours['of_read_floor']:.0%}",
    )
