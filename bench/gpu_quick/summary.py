"""The one screen at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.gpu_quick.goals import GOALS
from bench.gpu_quick.result import FAILED, Result
from bench.table import render

Row = dict[str, Any]
_TRACE_LINES = 12  # of a traceback, from its end


def screen(stage: str, results: Sequence[Result], rows: Sequence[Row]) -> str:
    """Parts, compilation, figures with their goals, and the first traceback of each failure."""
    blocks = [_head(stage, rows), "\n".join(result.line for result in results)]
    blocks += [_compiled(results), _figures(rows), *_culprits(results), *_traces(results)]
    return "\n\n".join(block for block in blocks if block)


def _head(stage: str, rows: Sequence[Row]) -> str:
    """The last row's card, pair, versions and commit."""
    if not rows:
        return f"gpu-quick, {stage}: no rows"
    last = rows[-1]
    card = next((r["gpu"] for r in rows if "gpu" in r), last.get("device") or "card unknown")
    pairs = sorted({r["pair"] for r in rows if r.get("pair")})
    versions = " ".join(f"{name} {value}" for name, value in last["versions"].items())
    return (
        f"gpu-quick, {stage}: {card}; {', '.join(pairs) or 'no pair'}; {len(rows)} rows\n"
        f"{versions}; commit {last['commit']}, {last['date']}"
    )


def _compiled(results: Sequence[Result]) -> str:
    ahead = [r.detail for r in results if r.part.group == "compile" and "kernels" in r.detail]
    later = {
        r.part.key: r.detail["compiled"]["kernels"]
        for r in results
        if r.part.group != "compile" and r.detail.get("compiled", {}).get("kernels")
    }
    names = ("kernels", "wall_seconds", "core_seconds")
    kernels, wall, cores = (sum(each[name] for each in ahead) for name in names)
    told = ", ".join(f"part {key}: {count}" for key, count in later.items()) or "none"
    ahead_in = f"{kernels} kernels in {wall:.0f} s ({cores:.0f} s of cores)"
    return f"compiled ahead: {ahead_in}; in parts: {told}"


def _figures(rows: Sequence[Row]) -> str:
    table = [(goal.name, goal.measured(rows), goal.goal) for goal in GOALS]
    return render(("figure", "measured", "goal"), table)


def _culprits(results: Sequence[Result]) -> list[str]:
    return [f"parity: {r.detail['verdict']}" for r in results if "verdict" in r.detail]


def _traces(results: Sequence[Result]) -> list[str]:
    return [
        f"part {r.part.key}:\n" + "\n".join(r.trace.rstrip().splitlines()[-_TRACE_LINES:])
        for r in results
        if r.state == FAILED and r.trace
    ]
