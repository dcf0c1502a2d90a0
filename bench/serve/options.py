"""The flags of ``python -m bench.serve``."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from bench.plot import check_plot
from bench.serve import laws
from bench.serve.laws import Lengths
from bench.serve.load import Load, read_entries
from bench.serve.summary import Slo
from bench.serve.target import ENDPOINTS, TOKEN_COUNTS, Target
from engine.errors import SteerError
from engine.files import check_output, parse_json


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"error: {message}\n")


def build_parser(description: str) -> argparse.ArgumentParser:
    """The command line."""
    parser = _Parser(
        prog="python -m bench.serve",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_server(parser.add_argument_group("the server"))
    _add_load(parser.add_argument_group("the load"))
    _add_clients(parser.add_argument_group("the clients"))
    _add_library(parser.add_argument_group("the library, to compare with"))
    _add_output(parser.add_argument_group("what is written"))
    return parser


def _add_server(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--base-url", metavar="URL", help="of the server, as in http://127.0.0.1:8000/v1")
    add("--model", metavar="NAME", help="to ask (default: the first that the server lists)")
    add("--endpoint", choices=list(ENDPOINTS), default="chat", help="(default: chat)")
    add("--api-key", metavar="KEY", help="(default: OPENAI_API_KEY of the environment)")
    add("--extra-body", metavar="JSON", help='more fields of each request, as in {"top_k": 20}')
    add("--server-pid", type=int, metavar="N", help="read this process's time and memory")
    add("--timeout", type=float, default=600.0, metavar="S", help="of a request (default: 600)")


def _add_load(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--at-once", type=int, metavar="N", help="closed loop: N requests are open at any time")
    add("--rate", type=float, metavar="X", help="open loop: X requests a second on average")
    add("--arrivals", choices=laws.ARRIVALS, default="poisson", help="with --rate: their law")
    add("--requests", type=int, metavar="N", help="stop after N (default: 100, or --seconds)")
    add("--seconds", type=float, metavar="S", help="send requests for S seconds instead")
    add("--warm-up", type=float, default=0.1, metavar="X", help="share not counted (default: 0.1)")
    add("--prompt-tokens", default="128", metavar="LAW", help=f"{laws.FORMS} (default: 128)")
    add("--output-tokens", default="64", metavar="LAW", help="likewise (default: 64)")
    add(
        "--file",
        type=Path,
        metavar="JSONL",
        help='prompts instead: {"prompt" or "messages", "max_tokens"} a line, taken in turn',
    )
    add("--temperature", type=float, default=0.0, metavar="X", help="(default: 0, greedy)")
    add(
        "--stop-at-eos",
        action="store_true",
        help="send no ignore_eos: answers may be shorter (servers that do not know it need this)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of all that is drawn (default: 0)")


def _add_clients(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--clients", type=int, default=1, metavar="N", help="client processes (default: 1)")
    add(
        "--vanish",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of clients that close at a random moment",
    )
    add("--slow", type=float, default=0.0, metavar="SHARE", help="of clients that read slowly")
    add(
        "--token-counts",
        choices=list(TOKEN_COUNTS),
        default="final",
        help="how tokens are counted: final: OpenAI's usage at the end, between tokens chunks; "
        "usage: usage in each chunk (continuous_usage_stats); ids: return_token_ids "
        "(default: final, which every server knows)",
    )


def _add_library(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--in-process",
        metavar="PAIR",
        help="give the load to AsyncEngine.stream in this process too, after the server; without "
        "--base-url, to it alone; tiny, or any pair with --small and --large",
    )
    add("--small", type=Path, metavar="PATH", help="of another pair")
    add("--large", type=Path, metavar="PATH", help="of another pair")
    add("--policy", default="steer", help="in process: which model writes (default: steer)")


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--slo", default="", metavar="LIST", help="goodput's limits, as in ttft=0.2,tpot=0.05")
    add("--json", type=Path, metavar="FILE", help="write a result row a line")
    add("--records", type=Path, metavar="FILE", help="write a line for each request")
    add("--plot", type=Path, metavar="FILE", help="write the distributions as a picture")


def check(options: argparse.Namespace) -> None:
    """SteerError on flags out of range, or that do not go together."""
    if not (options.base_url or options.in_process):
        raise SteerError("name a server with --base-url, or the library with --in-process PAIR")
    if (options.at_once is None) == (options.rate is None):
        raise SteerError("choose a load: --at-once N (closed loop) or --rate X (open loop)")
    if options.requests is not None and options.seconds is not None:
        raise SteerError("--requests and --seconds do not go together")
    for name in ("at_once", "requests", "clients", "server_pid"):
        _range(options, name, 1, 10_000_000)
    for name in ("rate", "seconds", "timeout"):
        _range(options, name, 1e-3, 1e6)
    for name in ("vanish", "slow"):
        _range(options, name, 0, 1)
    _range(options, "warm_up", 0, 0.9)
    _range(options, "temperature", 0, 100)
    if options.server_pid and not options.base_url:
        raise SteerError("--server-pid goes with --base-url")
    for name in ("json", "records"):
        check_output(getattr(options, name), f"--{name}")
    if options.plot:
        check_plot(options.plot)


def _range(options: argparse.Namespace, name: str, low: float, high: float) -> None:
    value = getattr(options, name)
    if value is not None and not low <= value <= high:
        flag = name.replace("_", "-")
        raise SteerError(f"--{flag}: expected a number from {low:g} to {high:g}, got {value:g}")


def load_of(options: argparse.Namespace) -> Load:
    """The load. SteerError on lengths and files that are none."""
    seconds = options.seconds
    return Load(
        requests=options.requests or (100 if seconds is None else None),
        seconds=seconds,
        at_once=options.at_once,
        rate=options.rate,
        law=options.arrivals,
        warm_up=options.warm_up,
        prompt_tokens=Lengths.parse("--prompt-tokens", options.prompt_tokens),
        output_tokens=Lengths.parse("--output-tokens", options.output_tokens),
        entries=read_entries(options.file, options.endpoint) if options.file else (),
        vanish=options.vanish,
        slow=options.slow,
        seed=options.seed,
    )


def slo_of(options: argparse.Namespace) -> Slo:
    """The service-level objectives."""
    return Slo.parse(options.slo)


def target_of(options: argparse.Namespace) -> Target | None:
    """The server, its model not filled in yet; None if only the library is measured."""
    if not options.base_url:
        return None
    fields: dict[str, Any] = {"model": options.model, "temperature": options.temperature}
    if not options.stop_at_eos:
        fields["ignore_eos"] = True
    fields |= TOKEN_COUNTS[options.token_counts]
    key = options.api_key or os.environ.get("OPENAI_API_KEY")
    if key and not (key.isascii() and key.isprintable()):
        raise SteerError("--api-key: expected printable ASCII")
    return Target.parse(
        options.base_url,
        endpoint=options.endpoint,
        key=key,
        timeout=options.timeout,
        fields=fields | _extra(options.extra_body),
    )


def _extra(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        extra = parse_json(text)
    except ValueError as error:
        raise SteerError(f"--extra-body: not valid JSON: {error}") from None
    if not isinstance(extra, dict) or {"prompt", "messages", "stream"} & extra.keys():
        raise SteerError(
            "--extra-body: expected a JSON object without prompt, messages and stream, "
            f"got {json.dumps(extra)[:80]}"
        )
    return extra


def repeated(arguments: Sequence[str]) -> str:
    """The command that repeats a run, without its key."""
    shown = list(arguments)
    for index, word in enumerate(shown):
        if word == "--api-key" and index + 1 < len(shown):
            shown[index + 1] = "KEY"
        elif word.startswith("--api-key="):
            shown[index] = "--api-key=KEY"
    return shlex.join(["python", "-m", "bench.serve", *shown])
