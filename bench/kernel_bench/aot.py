"""Every kernel at the shapes of the named models, compiled for sm_90 and checked for its limits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

from tqdm import tqdm

from bench.table import render
from engine.config.named_models import NAMED_MODELS
from engine.config.pairs import NAMED_PAIRS, Pair
from kernels.aot import registry
from kernels.aot.variant import Compiled, ModelShape, Report, Variant, compile_variant, read_reports

Row = dict[str, Any]
_VARIANTS: list[Variant] = []  # in a worker: kernels cannot be pickled, forks inherit them


def model_shapes(pairs: Sequence[str] = ()) -> list[ModelShape]:
    """The models of the named pairs, each once; of all pairs without any. SteerError if unknown."""
    named = [Pair.named(pair) for pair in pairs or [name for name in NAMED_PAIRS if "/" in name]]
    # By name: a Coder has the shape of its plain model.
    wanted = {n for pair in named for n, _ in zip(pair.name.split("/"), pair.shapes, strict=True)}
    return [
        ModelShape(
            name, c.hidden_size, c.intermediate_size, c.heads, c.kv_heads, c.head_dim, c.vocab_size
        )
        for name, c in NAMED_MODELS.items()
        if name in wanted
    ]


def check_models(ops: Sequence[str], shapes: Sequence[ModelShape]) -> list[Row]:
    """A row for each kernel of each op and model."""
    named = [(s.name, v) for s in shapes for op in ops for v in registry.op_variants(op, s)]
    found = check_variants([variant for _, variant in named])
    rows = [{"model": model, **row} for (model, _), row in zip(named, found, strict=True)]
    return sorted(rows, key=lambda r: ops.index(r["op"]))


def check_variants(variants: Sequence[Variant]) -> list[Row]:
    """Compile each variant, equal ones once, on all cores; a row for each, in order, with a bar.

    A row's ``failures`` say which limits are broken; compile errors are among them.
    """
    keys = [_key(v) for v in variants]
    unique = dict(zip(keys, variants, strict=True))
    usable = getattr(os, "sched_getaffinity", None)
    workers = min(len(usable(0)) if usable else os.cpu_count() or 1, 16)
    made: dict[str, tuple[bytes, int] | str] = {}
    with ProcessPoolExecutor(
        workers, get_context("fork"), initializer=_inherit, initargs=(list(unique.values()),)
    ) as pool:
        futures = {pool.submit(_compile, i): key for i, key in enumerate(unique)}
        for future in tqdm(as_completed(futures), "compiling", len(futures)):
            made[futures[future]] = future.result()
    good = {
        key: Compiled(unique[key], *each) for key, each in made.items() if not isinstance(each, str)
    }
    reports = dict(zip(good, read_reports(list(good.values())), strict=True))
    said: dict[str, Report | str] = {k: e for k, e in made.items() if isinstance(e, str)}
    said |= reports
    return [_row(variant, said[key]) for key, variant in zip(keys, variants, strict=True)]


def _key(v: Variant) -> str:
    """Everything that the result depends on, which excludes the name."""
    options = (v.warps, v.stages, v.elements, v.budget, v.wide, v.registers)
    kernel = (v.op, v.kernel.__module__, v.kernel.__name__)
    return repr((kernel, dict(v.signature), dict(v.constants), v.aligned, options))


def _inherit(variants: list[Variant]) -> None:
    _VARIANTS[:] = variants


def _compile(index: int) -> tuple[bytes, int] | str:
    """The machine code and its shared memory, or what the compiler says."""
    try:
        compiled = compile_variant(_VARIANTS[index])
    except Exception as error:  # any error: the table must name the kernel and go on
        return f"does not compile: {str(error).strip().splitlines()[-1:]}"
    return compiled.cubin, compiled.shared


def _row(variant: Variant, report: Report | str) -> Row:
    limits = {"budget": variant.budget, "register_limit": variant.registers}
    row: Row = {"kind": "aot", "op": variant.op, "kernel": variant.name, **limits}
    if isinstance(report, str):
        return row | {"failures": [report]}
    return row | {
        "registers": report.registers,
        "spills": report.spills,
        "shared": report.shared,
        "instructions": report.instructions,
        "instructions_per_element": report.per_element,
        "loads": {str(width): count for width, count in sorted(report.loads.items())},
        "wide_share": report.wide_share,
        "failures": report.failures(),
    }


def failures(rows: Sequence[Row]) -> list[str]:
    """One line per broken limit."""
    return [f"{r['op']} {r['kernel']} {r['model']}: {f}" for r in rows for f in r["failures"]]


def show(rows: Sequence[Row]) -> str:
    """The table. Models that share a kernel share a line."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        lines.setdefault(_cells(row), []).append(row["model"].removeprefix("qwen-"))
    header = (
        "op",
        "kernel",
        "models",
        "registers",
        "spills",
        "shared",
        "loads by bits",
        "in 16 bytes",
        "instructions/element",
        "limit",
        "ok",
    )
    return render(
        header, [(*cells[:2], ",".join(models), *cells[2:]) for cells, models in lines.items()]
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    verdict = "NO" if row["failures"] else "yes"
    if "registers" not in row:
        return (row["op"], row["kernel"], *"------", "-", verdict)
    loads = " ".join(f"{count}x{width}" for width, count in row["loads"].items())
    budget, each = row["budget"], row["instructions_per_element"]
    return (
        row["op"],
        row["kernel"],
        str(row["registers"]),
        str(row["spills"]),
        str(row["shared"]),
        loads or "-",
        f"{row['wide_share']:.0%}",
        f"{each:.1f}" if each else "-",
        f"{budget:g}" if budget else "-",
        verdict,
    )
