"""Rows, tables and pictures of runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.serve.load import Load
from bench.serve.processes import Run
from bench.serve.records import OK, Record
from bench.serve.summary import Slo, Window, counted, spread, summary
from bench.table import render

Row = dict[str, Any]
_TIMES = {
    "ttft": "time to first token, ms",
    "between_tokens": "between tokens, ms",
    "tpot": "mean of a token after the first, ms",
    "e2e": "end to end, ms",
    "late": "sent late by, ms",
}
_LEAST_MS = 0.01  # drawn where less was measured: a logarithmic axis has no 0
_MEASURED = {
    "usage": "gaps between pieces / new tokens, which usage in each chunk tells",
    "ids": "gaps between pieces / new tokens, which their ids tell",
    "chunks": "gaps between pieces / chunks with text: a chunk may hold several tokens",
}


def window_of(run: Run, load: Load) -> Window:
    """The counted time of a run."""
    timed = None
    if load.seconds is not None:
        timed = run.begin + load.warm_up * load.seconds, run.begin + load.seconds
    return Window.of(records_of(run), load.uncounted, timed)


def records_of(run: Run) -> list[Record]:
    """Of all processes, by their numbers."""
    return sorted((r for s in run.shares for r in s.records), key=lambda record: record.index)


def row_of(run: Run, load: Load, slo: Slo) -> Row:
    """What a run measured. Processor seconds are of the whole run, its warm-up included."""
    records = records_of(run)
    tokens = sum(r.tokens for r in records)
    cpu = sum(share.cpu for share in run.shares)
    return {
        **summary(records, window_of(run, load), load.uncounted, slo),
        "tokens": tokens,
        "client_processes": len(run.shares),
        "client_cpu_seconds": cpu,
        "client_cpu_us_a_token": a_token(cpu, tokens),
        "client_reading_seconds": sum(share.reading for share in run.shares),
    }


def a_token(seconds: float, tokens: int) -> float | None:
    """Microseconds of a token; None where there is none."""
    return 1e6 * seconds / tokens if tokens else None


def show(row: Row) -> str:
    """One run, for people."""
    lines = [
        f"{row['target']}: {row['whole']} of {row['requests']} requests whole, "
        f"{row['warm_up']} more not counted (warm-up and end), {row['seconds']:.2f} s",
        f"  {row['tokens_per_second']:.1f} tokens/s, {row['requests_per_second']:.2f} requests/s",
        f"  outcomes: {_listed(row['outcomes'])}; finish reasons: {_listed(row['finish'])}",
    ]
    if row["slo"]:
        share, rate = row["goodput_share"], row["goodput_per_second"]
        said = "-" if share is None else f"{share:.1%}"
        lines.append(
            f"  goodput: {said} of requests meet {_listed(row['slo'])}: {rate:.2f} requests/s"
        )
    own = "clients'" if row["target"] == "server" else "engine's and its readers'"
    for name, text in (("client_cpu", own), ("server_cpu", "server's")):
        if (each := row.get(f"{name}_us_a_token")) is not None:
            taken = row[f"{name}_seconds"]
            lines.append(f"  {text} processor time: {taken:.2f} s, {each:.0f} us a token")
    if peak := row.get("server_peak_bytes"):
        lines.append(f"  server's peak memory: {peak / 2**20:.0f} MiB")
    cells = [
        (text, *(f"{1e3 * row[name][part]:.2f}" for part in ("p50", "p90", "p99", "mean", "max")))
        for name, text in _TIMES.items()
        if row[name]
    ]
    for measured in filter(None, row["measured"].split("/")):
        lines.append(f"  between tokens: {_MEASURED[measured]}")
    return "\n".join([*lines, "", render(("", "p50", "p90", "p99", "mean", "max"), cells)])


def comparison(server: Row, library: Row) -> Row:
    """The server in relation to the library: tokens a second, and processor time of a token if
    the server's is known."""
    ours, theirs = library["tokens_per_second"], server["tokens_per_second"]
    cpu, own = server.get("server_cpu_us_a_token"), library["client_cpu_us_a_token"]
    return {
        "target": "server / in-process",
        "tokens_per_second_ratio": theirs / ours if ours else None,
        "cpu_a_token_ratio": cpu / own if cpu is not None and own else None,
    }


def show_comparison(row: Row) -> str:
    """One line."""
    said = {
        "tokens/s": row["tokens_per_second_ratio"],
        "processor time of a token": row["cpu_a_token_ratio"],
    }
    known = [f"{name} {value:.3f}" for name, value in said.items() if value is not None]
    return f"server / in-process: {', '.join(known) or 'no token on one side'}"


def failures(records: Sequence[Record]) -> list[str]:
    """One line for each kind of error, with the first message of its kind."""
    wrong = [r for r in records if r.message]
    first = {r.outcome: r.message for r in reversed(wrong)}
    counts = Counter(r.outcome for r in wrong)
    return [f"{counts[kind]} x {kind}: {first[kind]}" for kind in counts]


def record_row(record: Record, begin: float) -> Row:
    """One request, times in seconds from the beginning."""
    return {
        "index": record.index,
        "due": record.due - begin,
        "ttft": record.ttft,
        "tpot": record.tpot,
        "e2e": record.e2e,
        "intervals": spread(record.intervals()),
        "tokens": record.tokens,
        "prompt_tokens": record.prompt_tokens,
        "finish": record.finish,
        "outcome": record.outcome,
        "message": record.message,
    }


def plot(runs: Mapping[str, tuple[Run, Load]], path: Path, title: str) -> None:
    """Write a picture: the distributions of the time to first token and between tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (first, between) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name, (run, load) in runs.items():
        asked = counted(records_of(run), window_of(run, load), load.uncounted)
        whole = [r for r in asked if r.outcome == OK]
        waits = [1e3 * r.ttft for r in whole if r.ttft is not None]
        gaps = [1e3 * gap for r in whole for gap in r.intervals()]
        for axis, values in ((first, waits), (between, gaps)):
            if values:
                drawn = [max(value, _LEAST_MS) for value in values]
                axis.ecdf(drawn, label=f"{name} ({len(values)})")
    for axis, label in ((first, "time to first token, ms"), (between, "between tokens, ms")):
        axis.set(xlabel=label, ylabel="share of requests or gaps up to it", xscale="log")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(loc="best")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items()) or "none"
