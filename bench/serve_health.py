"""Does a server still answer /health while it reads very long prompts?

    python -m bench.serve_health --base-url http://127.0.0.1:8000
    python -m bench.serve_health --base-url http://127.0.0.1:8000 --megabytes 20 --json rows.jsonl

One client sends prompts of so many megabytes, one after the other; whether they are answered or
refused as too long makes no difference. Meanwhile another asks /health every 10 ms over one
connection. The times of /health are printed, and those without the long prompts before them.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from bench.rows import RowWriter
from bench.table import render

_PAUSE = 0.01
_TEXT = "12+"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status: 1 if no server answers."""
    options = _parser().parse_args(arguments)
    host = urlsplit(options.base_url).netloc
    done = threading.Event()
    sender = threading.Thread(target=_send, args=(host, options, done), daemon=True)
    try:
        before = _health_times(host, options.seconds / 2, threading.Event())
        sender.start()
        during = _health_times(host, options.seconds, done)
    except OSError as error:
        print(f"error: {options.base_url}: no server answers: {error}", file=sys.stderr)
        return 1
    done.set()
    sender.join()
    with RowWriter(options.json) as writer:
        rows = [_row(name, times) for name, times in (("idle", before), ("long prompts", during))]
        for row in rows:
            writer.write({"bench": "serve-health", "megabytes": options.megabytes, **row})
    print(render(list(rows[0]), [[_shown(v) for v in row.values()] for row in rows]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.serve_health",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", help="without /v1")
    parser.add_argument("--megabytes", type=float, default=5.0, help="of a prompt (default: 5)")
    parser.add_argument("--seconds", type=float, default=10.0, help="to measure (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a result row a line")
    return parser


def _send(host: str, options: argparse.Namespace, done: threading.Event) -> None:
    text = _TEXT * int(options.megabytes * 1e6 / len(_TEXT))
    body = json.dumps({"prompt": text, "max_tokens": 1}).encode()
    while not done.is_set():
        connection = http.client.HTTPConnection(host)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", body, headers)
        connection.getresponse().read()
        connection.close()


def _health_times(host: str, seconds: float, done: threading.Event) -> list[float]:
    """Seconds of each request for so long."""
    connection, times = http.client.HTTPConnection(host), list[float]()
    end = time.monotonic() + seconds
    while time.monotonic() < end and not done.is_set():
        begin = time.perf_counter()
        connection.request("GET", "/health")
        response = connection.getresponse()
        response.read()
        times.append(time.perf_counter() - begin)
        if response.status != 200:
            raise OSError(f"/health gave {response.status}")
        time.sleep(_PAUSE)
    connection.close()
    return times


def _row(name: str, times: list[float]) -> dict[str, object]:
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {
        "during": name,
        "requests": len(times),
        "median_ms": cuts[49] * 1e3,
        "p99_ms": cuts[98] * 1e3,
        "most_ms": max(times) * 1e3,
    }


def _shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
