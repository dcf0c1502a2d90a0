"""``python -m bench.flops --all --report DIR``: measures every domain and writes one folder."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from bench.prices.options import PriceFlags
from bench.prices.table import prices_notes
from bench.report import tables
from bench.report.domain import available, domain
from bench.report.measure import measure
from bench.report.rows import OURS, all_rows
from bench.report.summary import summary, title
from bench.rows import RowWriter, provenance
from engine.errors import SteerError
from engine.tuning.pictures import can_draw

PROBLEMS = 1000
_PAGE, _ROWS = "README.md", "rows.jsonl"
_NOTES = """\
FLOPs are matrix products relative to the large model alone, lazy catch-up. Settings share a
prefix cache; what it spared them counts as computed. **Decode** counts rows that gave a token,
**with catch-up** all rows, **re-prefill** the whole prefix at each entry of a model. *Chosen*
settings come from calibration problems, disjoint from these. *Composed* ones are put together
from the two models alone. A frontier is a family's upper concave hull, the two models alone being
its ends: between two settings lies their mixture at random. Its intervals are over 1,000
resamples of the problems; a paired difference of two settings has Newcombe's interval. Frontiers
take the settings that look best on these very problems, for rivals as for ours. **STEER** is the
policy `steer`, a calibrated rule on a step's first token or a probe, in the style of the paper; the
paper's own rule, on finished steps of a batch, is `steer-paper` and has no row here."""


def add_flags(parser: argparse._ActionsContainer) -> None:
    """The report's own flags."""
    add = parser.add_argument
    add("--all", action="store_true", help="every policy on every domain; needs --report")
    add("--report", type=Path, metavar="DIR", help="folder for tables, rows, plots and a summary")
    add(
        "--domains",
        metavar="LIST",
        help="for --report, comma-separated TASK-STYLE (default: all that a pair here can do)",
    )
    add("--jobs", type=int, metavar="N", help="for --report: processes (default: one a core)")


def write_report(options: argparse.Namespace) -> int:
    """The folder is put in place when all of it is written."""
    names, prices = _check(options), PriceFlags.of(options)
    problems = options.problems or PROBLEMS
    parent = options.report.resolve().parent
    draft = Path(tempfile.mkdtemp(prefix=".report-", dir=parent))
    try:
        started = time.perf_counter()
        rows = _measure_all(names, problems, draft, options.jobs, prices)
        seconds = time.perf_counter() - started
        with RowWriter(draft / _ROWS) as writer:
            for row in rows:
                writer.write(row)
        (draft / _PAGE).write_text(_page(rows, names, seconds))
        draft.chmod(0o755)
        if options.report.exists():
            shutil.rmtree(options.report)
        draft.rename(options.report)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    print(summary(rows, names))
    print(f"\nwritten: {options.report / _PAGE}")
    return 0


def _check(options: argparse.Namespace) -> list[str]:
    folder = options.report
    if folder is None:
        raise SteerError("--all writes a folder: pass --report DIR")
    if not options.all:
        raise SteerError("--report is about every policy on every domain: pass --all with it")
    if not can_draw():
        raise SteerError("--report needs matplotlib: pip install steer-engine[plot]")
    if options.problems is not None and options.problems < 50:
        raise SteerError(f"--report needs at least 50 --problems, got {options.problems}")
    if options.jobs is not None and options.jobs < 1:
        raise SteerError(f"--jobs must be at least 1, got {options.jobs}")
    given = options.domains
    asked = available() if given is None else [n.strip() for n in given.split(",")]
    names = [n for n in dict.fromkeys(asked) if n]
    if not names:
        raise SteerError("--domains names no domain")
    for name in names:
        domain(name, 1)
    if not folder.resolve().parent.is_dir():
        raise SteerError(f"--report {folder}: no such folder: {folder.resolve().parent}")
    ours = folder.is_dir() and (not any(folder.iterdir()) or (folder / _ROWS).is_file())
    if folder.exists() and not ours:
        raise SteerError(f"--report {folder}: is there and holds no earlier report")
    return names


def _measure_all(
    names: list[str], problems: int, folder: Path, jobs: int | None, prices: PriceFlags
) -> list[dict[str, Any]]:
    """Rows of all domains, in their order; each domain in a process of its own."""
    processes = min(jobs or os.cpu_count() or 1, len(names))
    context = multiprocessing.get_context("spawn")
    by_name: dict[str, list[dict[str, Any]]] = {}
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        waiting = {pool.submit(_work, name, problems, folder, prices): name for name in names}
        try:
            for done in as_completed(waiting):
                by_name[waiting[done]] = done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [row for name in names for row in by_name[name]]


def _work(name: str, problems: int, folder: Path, prices: PriceFlags) -> list[dict[str, Any]]:
    from bench.report.pictures import draw

    def say(line: str) -> None:
        print(f"{name}: {line}", file=sys.stderr, flush=True)

    measured = measure(name, problems, say, prices)
    started = time.perf_counter()
    rows = all_rows(measured)
    draw(measured, folder)
    spent = round(time.perf_counter() - started, 3)
    last = {"kind": "time", "domain": name, "part": "statistics and plots", "seconds": spent}
    return [*rows, last]


def _page(rows: list[dict[str, Any]], names: list[str], seconds: float) -> str:
    parts = [
        "# Results",
        f"`python -m bench.flops --all --report DIR`. {title(provenance())} "
        f"It took {seconds:.0f} seconds. Rows: `{_ROWS}`.",
        "## In words",
        summary(rows, names),
        "## How to read it",
        _NOTES,
        f"```text\n{prices_notes(tables.of(rows, 'setting'), toy=True)}\n```",
    ]
    for name in names:
        parts += [f"## {name}", f"![frontier]({name}-frontier.png)"]
        parts += ["### STEER against others, paired", tables.paired_table(rows, name)]
        for cost, words in tables.costs(rows, name).items():
            parts.append(f"### Frontiers, {words}")
            parts += [tables.frontier_table(rows, name, cost, first) for first in OURS]
        parts += [
            "### AUROC for the small model's errors, by window and signal",
            "With the checker's labels / without labels; the chosen one is bold.",
            tables.signals_table(rows, name),
            "### The audit",
            tables.audit_table(rows, name),
            tables.rollback_table(rows, name),
            "### Calibration",
            f"![histogram]({name}-histogram.png)",
            f"![reliability]({name}-reliability.png)",
            "### Every setting",
            tables.settings_table(rows, name),
        ]
    return "\n\n".join(parts) + "\n"
