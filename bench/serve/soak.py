"""``python -m bench.serve.soak``: rounds of chaos against a server, and what must hold after it."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence

from prometheus_client.parser import text_string_to_metric_families

from bench.serve.chaos import Chaos, Tally
from bench.serve.served_process import ServedProcess

CONTEXT = 256
# Small limits: all of them are met.
FLAGS = (
    *("--model-pair", "tiny", "--max-context", str(CONTEXT), "--max-sequences", "8"),
    *("--max-waiting", "40", "--arena-tokens", "1024"),
)
MOST_GROWTH = 20 << 20  # bytes of memory between the warm-up's end and the end
MOST_HEALTH = 1.0  # seconds that /health may take
_QUIET_SECONDS = 20.0


def idle_faults(server: ServedProcess) -> list[str]:
    """What a server still holds once its clients have gone, one line each."""
    end = time.monotonic() + _QUIET_SECONDS
    while (found := _held(server)) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def _held(server: ServedProcess) -> list[str]:
    now = server.arena()
    counts = {name: now[name] for name in ("running", "waiting", "open", "reserved")}
    counts |= {f"live tokens, {role}": each["live"] for role, each in now["tokens"].items()}
    return [f"{count} {name}" for name, count in counts.items() if count]


def count_faults(server: ServedProcess, tally: Tally) -> list[str]:
    """What in /metrics does not add up with itself or with what the clients saw."""
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(server.get("/metrics")):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    started = totals["steer_requests_started_total"]
    finished = totals.get("steer_requests_finished_total", 0.0)
    refused, seen = totals["steer_queue_rejections_total"], tally.seen("429")
    rules = {
        f"{started:g} answers started, {finished:g} ended": started == finished,
        f"{totals['steer_streams_open']:g} streams open": totals["steer_streams_open"] == 0,
        f"{refused:g} rejections counted, {seen} seen, {tally.seen('left')} clients left": (
            seen <= refused <= seen + tally.seen("left")
        ),
    }
    return [text for text, holds in rules.items() if not holds]


def soak(
    server: ServedProcess, chaos: Chaos, clients: int, seconds: Sequence[float], say: bool = False
) -> list[str]:
    """Rounds of these lengths, the first to warm up; what does not hold after them."""
    faults, start = [], 0
    began = time.monotonic()
    for number, length in enumerate(seconds):
        asyncio.run(chaos.run(clients, length))
        faults += idle_faults(server)
        start = start or server.rss
        if say:
            passed = (time.monotonic() - began) / 60
            tally = chaos.tally
            print(
                f"{passed:5.1f} min  round {number}  {tally.requests} requests  "
                f"RSS {server.rss / 2**20:.1f} MiB  /health {tally.health:.3f} s at most",
                flush=True,
            )
    growth, tally = server.rss - start, chaos.tally
    faults += count_faults(server, tally) + tally.faults
    if growth > MOST_GROWTH:
        faults.append(f"memory grew by {growth / 2**20:.1f} MiB after the warm-up")
    if tally.health > MOST_HEALTH:
        faults.append(f"/health took {tally.health:.2f} s")
    return faults


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if anything does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve.soak", description=__doc__)
    minutes = float(os.environ.get("STEER_SOAK_MINUTES", "30"))
    parser.add_argument("--minutes", type=float, default=minutes, help="default: %(default)g")
    parser.add_argument("--clients", type=int, default=60, help="at once (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rounds = max(2, round(options.minutes * 3))
    with ServedProcess(*FLAGS) as server:
        chaos = Chaos(server.port, CONTEXT - 64, options.seed)
        lengths = [options.minutes * 60 / rounds] * rounds
        faults = soak(server, chaos, options.clients, lengths, say=True)
        code = server.stop()
        written = server.written.splitlines()[1:]
    for (kind, outcome), count in sorted(chaos.tally.outcomes.items()):
        print(f"{count:7}  {kind}: {outcome}")
    faults += [f"exit status {code}"] if code else []
    for line in [*sorted(set(faults)), *written[-20:]]:
        print(f"fault: {line}" if line in faults else f"written: {line}", file=sys.stderr)
    print("all held" if not faults else f"{len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
