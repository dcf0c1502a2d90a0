"""How fast does a server answer, seen from its clients? Any server with OpenAI's interface.

    python -m bench.serve --base-url http://127.0.0.1:8000/v1 --at-once 64 --requests 640
    python -m bench.serve --base-url http://127.0.0.1:8000/v1 --rate 8 --seconds 60 \\
        --prompt-tokens uniform:64:256 --output-tokens lognormal:100:0.6:400 \\
        --slo ttft=0.2,tpot=0.05 --json rows.jsonl --plot times.png
    python -m bench.serve --base-url http://127.0.0.1:8000/v1 --endpoint completions --at-once 16 \\
        --in-process tiny --server-pid PID             a server compared with the library
    python -m bench.serve --base-url http://127.0.0.1:8000/v1 --at-once 32 --seconds 300 \\
        --vanish 0.2 --slow 0.1                        clients that leave, or read slowly

A closed loop (--at-once) keeps so many requests open: the end of one begins the next, so a slow
server is asked less. An open loop (--rate) sends at the moments of a law, whatever the server
does: it shows how waiting grows with the load, and its times are counted from the moment when the
request was due, so that a client that is late hides nothing.

Clients are processes of their own, which stream over HTTP/1.1 and keep their connections. While
answers come they only store bytes and times; they are parsed after the load. If the clients'
processor time comes near the seconds of the run, take more --clients: else the clients are what is
measured. A client and a server on one machine share its cores.

What is measured, of answers that came whole:
  time to first token  until the first piece with text (a chunk with only a role is none)
  between tokens       the gap between two pieces divided by the new tokens; a piece is what one
                       read brings. With --token-counts final a chunk counts as one token
  mean of a token      (last piece - first piece) / tokens after the first piece; SLO name tpot
  end to end           until the last byte
  tokens a second      all tokens that arrived in the counted time, divided by it
  goodput              requests that meet --slo; errors do not meet it. Clients that leave
                       (--vanish) and slow ones (--slow) are in no time and in no goodput

The counted time begins after the warm-up: a share of --requests, or of --seconds. With --seconds
it ends when no more is sent; with --requests when the last answer ends, so that the end, when few
are open, is in it: ask for many times more requests than are open at once.

Prompts are sums of random numbers, so that no two share a cache; two requests before the load
measure how many characters make a token. In process (--in-process) the same requests go to
AsyncEngine.stream with the engine's default settings: give the server the same.

Exit status: 0; 1 if no server answers or no answer came whole; 2 on bad flags.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.rows import RowWriter
from bench.serve import report
from bench.serve.load import Load
from bench.serve.options import build_parser, check, load_of, repeated, slo_of, target_of
from bench.serve.probe import NoServerError, first_model, fitted
from bench.serve.processes import ClientError, Run, ServerProcess
from bench.serve.processes import run as run_clients
from bench.serve.records import OK, SLOW
from bench.serve.summary import Slo
from bench.serve.target import Target
from engine.errors import SteerError
from engine.files import JsonLines

_INTERRUPTED = 130
_Measured = dict[str, tuple[Run, Load]]


class Measurement:
    """The runs that a command line asks for, and their rows."""

    def __init__(self, options: argparse.Namespace, slo: Slo) -> None:
        self.runs: _Measured = {}
        self.rows: list[dict[str, Any]] = []
        self._options = options
        self._slo = slo

    def server(self, target: Target, load: Load) -> Load:
        """Measure a server; the load as it was fitted to its tokenizer."""
        if target.fields.get("model") is None:
            target = replace(target, fields={**target.fields, "model": first_model(target)})
        load = fitted(load, target)
        pid = self._options.server_pid
        process = ServerProcess(pid) if pid else None
        done = run_clients(load, target, self._processes(load))
        row = self._add("server", done, load)
        row |= {"server": target.name, "model": target.fields["model"]}
        if process:
            taken = process.taken
            row["server_cpu_seconds"] = taken
            row["server_cpu_us_a_token"] = report.a_token(taken, row["tokens"])
            row["server_peak_bytes"] = process.peak_bytes()
        return load

    def in_process(self, load: Load, is_fitted: bool) -> None:
        """Measure the library with the same requests."""
        from bench.serve.in_process import Library
        from engine import Engine

        options = self._options
        library = Library(
            Engine(options.in_process, small=options.small, large=options.large),
            options.policy,
            options.endpoint == "chat",
            options.temperature,
            not options.stop_at_eos,
        )
        load = load if is_fitted else library.fitted(load)
        row = self._add("in-process", library.run(load), load)
        row |= {"model": options.in_process, "policy": options.policy}

    def compare(self) -> None:
        """A row of ratios, where both were measured."""
        if len(self.rows) == 2:
            self.rows.append(report.comparison(*self.rows))

    def _processes(self, load: Load) -> int:
        """No process without a place or a request."""
        clients: int = self._options.clients
        return min(clients, load.at_once or 10_000, load.requests or 10_000)

    def _add(self, target: str, run: Run, load: Load) -> dict[str, Any]:
        self.runs[target] = run, load
        row = {"target": target, **_asked(load, self._options)}
        self.rows.append(row | report.row_of(run, load, self._slo))
        return self.rows[-1]


def _asked(load: Load, options: argparse.Namespace) -> dict[str, Any]:
    """The fields that say what was asked."""
    return {
        "endpoint": options.endpoint,
        "at_once": load.at_once,
        "rate": load.rate,
        "arrivals": load.law if load.rate else None,
        "prompt_law": options.prompt_tokens if not load.entries else options.file.name,
        "output_law": options.output_tokens,
        "vanish": load.vanish,
        "slow": load.slow,
        "seed": load.seed,
    }


def _title(load: Load, options: argparse.Namespace) -> str:
    asked = f"{load.at_once} at once" if load.at_once else f"{load.rate:g} requests/s, {load.law}"
    prompt = options.file.name if load.entries else f"{options.prompt_tokens} tokens"
    return f"{asked}; prompts: {prompt}; answers: {options.output_tokens} tokens"


def run(options: argparse.Namespace, command: str) -> int:
    """Measure, print, write."""
    check(options)
    load, slo, target = load_of(options), slo_of(options), target_of(options)
    measurement = Measurement(options, slo)
    if target:
        load = measurement.server(target, load)
    if options.in_process:
        measurement.in_process(load, is_fitted=target is not None)
    measurement.compare()
    with RowWriter(options.json) as writer, JsonLines(options.records) as lines:
        for row in measurement.rows:
            writer.write({"bench": "serve", **row, "command": command})
        for name, (done, _) in measurement.runs.items():
            for record in report.records_of(done):
                lines.write({"target": name, **report.record_row(record, done.begin)})
    if options.plot:
        report.plot(measurement.runs, options.plot, _title(load, options))
    return _say(measurement)


def _say(measurement: Measurement) -> int:
    answered = True
    for row, (done, _) in zip(measurement.rows, measurement.runs.values(), strict=False):
        print(f"{report.show(row)}\n")
        records = report.records_of(done)
        for line in report.failures(records):
            print(f"{row['target']}: {line}", file=sys.stderr)
        answered = answered and any(r.outcome in (OK, SLOW) for r in records)
    if len(measurement.rows) == 3:
        print(report.show_comparison(measurement.rows[2]))
    if not answered:
        print("error: no answer came whole", file=sys.stderr)
    return 0 if answered else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 if there is no server or no answer, 2 on bad flags, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return run(build_parser(__doc__ or "").parse_args(given), repeated(given))
    except (NoServerError, ClientError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (SteerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return _INTERRUPTED
