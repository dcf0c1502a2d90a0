"""``steer serve``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from engine import engine_flags
from engine.config import EngineConfig
from engine.config.pairs import CUSTOM, NAMED_PAIRS
from engine.errors import SteerError
from engine.routing.calibration import Calibration
from engine.routing.names import HELP, is_calibrated, make_policy
from engine.routing.policy import complete
from engine.routing.speculation import VERIFY
from engine.routing.windows import FORMS

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.serve.lifecycle import Server
    from engine.serve.settings import ServerSettings

_DRAWN_ROWS = 1024  # of a tick, at most
_KEY_VARIABLE = "STEER_API_KEY"
_PACKAGES = ("fastapi", "starlette", "uvicorn", "pydantic", "orjson", "prometheus_client", "h11")
_EXAMPLE = """\
example:
  steer serve --model-pair tiny
  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
    -d '{"prompt": "47+36*7-15?\\n\\n", "max_tokens": 64}'

Any OpenAI client works with the base URL http://127.0.0.1:8000/v1. The served model name routes by
the policy; the names "small" and "large" select one model. GET /health, /ready, /metrics and
/openapi.json say the rest. SIGTERM lets running answers end, for --drain-timeout seconds.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``serve`` and its flags."""
    parser = commands.add_parser(
        "serve",
        help="serve a pair over HTTP to any OpenAI client",
        description="Serves a pair over HTTP, with OpenAI's interface. Needs the packages of "
        "pip install 'steer-engine[serve]'.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    engine_flags.add_flags(parser)
    _add_address_flags(parser)
    _add_access_flags(parser)
    _add_answer_flags(parser)
    _add_limit_flags(parser)
    _add_report_flags(parser)


def _add_address_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("address").add_argument
    add("--host", default="127.0.0.1", help="listen here; 0.0.0.0: everywhere (default: 127.0.0.1)")
    add("--port", type=_port, default=8000, help="0 takes a free one (default: 8000)")
    add(
        "--served-model-name",
        action="append",
        metavar="NAME",
        help="the model name that routes by the policy; repeatable (default: the pair's name, "
        "or those of the two checkpoints)",
    )


def _add_access_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("who may use it").add_argument
    add(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help=f"ask for this key; repeatable (also: the variable {_KEY_VARIABLE})",
    )
    add("--api-key-file", type=Path, metavar="FILE", help="keys, one a line")
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer to this name in the Host header too, besides localhost, --host and bare "
        "addresses; .NAME: all names below it, *: any; repeatable",
    )
    add(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this origin call the server, as in https://chat.example.org; *: any; "
        "repeatable (default: none)",
    )


def _add_answer_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("answers").add_argument
    add(
        "--policy",
        help=f"of requests that name none: {HELP}; WINDOW is {FORMS} (default: steer for the "
        "embedded pair or with a --calibration, else verify, which needs none)",
    )
    add("--calibration", type=Path, metavar="FILE", help="of this pair, for steer and its kin")
    add(
        "--request-timeout",
        type=float,
        metavar="SECONDS",
        help="end an answer after so long (default: never)",
    )
    add(
        "--frames-per-second",
        type=int,
        default=1250,
        metavar="N",
        help="of all streams together: where more tokens come, several share a frame, which leaves "
        "more of the processor to the models (default: 1250)",
    )


def _add_limit_flags(parser: argparse.ArgumentParser) -> None:
    defaults = EngineConfig()
    add = parser.add_argument_group("limits").add_argument
    for name, text in (
        ("max-waiting", "requests that wait at once; further ones get 429; 0: no limit"),
        ("max-sequences", "requests that run at once"),
        ("max-context", "tokens of one sequence, prompt included; 0: the smaller model's limit"),
        ("arena-tokens", "KV capacity in tokens of the large model; 0: what memory allows"),
    ):
        default = getattr(defaults, name.replace("-", "_"))
        add(
            f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    add(
        "--max-body-bytes",
        type=int,
        default=16 << 20,
        metavar="N",
        help="of a request's body (default: 16 MiB)",
    )
    add(
        "--drain-timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="that running answers get to end in when the server stops (default: 30)",
    )


def _add_report_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("reports").add_argument
    add("--metrics-compat", choices=["vllm"], help="show vLLM's names in /metrics too")
    add("--log-format", choices=["text", "json"], default="text", help="(default: text)")
    add(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        default="info",
        help="the lowest that is written; no level writes prompts or answers (default: info)",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535, got {text!r}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Serve until a signal; returns the exit status."""
    _check_packages()
    from engine.serve import lifecycle, logs
    from engine.serve.hosts import is_loopback

    _fill_in(options)
    settings = _settings(options)
    _check_policy(options)
    logs.configure(options.log_format, options.log_level)
    lifecycle.end_on_sigterm()
    # The address first: a port that is taken is said before the weights are read.
    opened = lifecycle.bind(options.host, options.port)
    if not is_loopback(options.host) and not settings.keys:
        logs.log.warning(
            f"anybody who reaches {options.host} may use this server: pass --api-key KEY"
        )
    engine = engine_flags.load(options, _engine_config(options))
    calibration = _calibration(options, engine)
    engine.policy(settings.policy, calibration)  # refused now, not at the first request
    lifecycle.serve(_server(engine, calibration, settings, lifecycle.url_of(opened)), opened)
    return 0


def _check_packages() -> None:
    """SteerError if a package of the extra ``serve`` is missing."""
    try:
        import engine.serve.lifecycle  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        raise SteerError(
            f"steer serve needs the package {error.name}: pip install 'steer-engine[serve]'"
        ) from None


def _fill_in(options: argparse.Namespace) -> None:
    """What the flags leave open: the pair of two checkpoints, and a policy that suits it."""
    if options.pair == "tiny" and (options.small or options.large):
        options.pair = CUSTOM
    if options.policy is None:
        fitted = options.pair == "tiny" or options.calibration is not None
        options.policy = "steer" if fitted else VERIFY


def _served_name(options: argparse.Namespace) -> str:
    """The pair's name; of two checkpoints theirs."""
    if options.pair != CUSTOM or not (options.small and options.large):
        return str(options.pair)
    return f"{options.small.stem}/{options.large.stem}"


def _check_policy(options: argparse.Namespace) -> None:
    """SteerError on a policy that no loaded pair would make good: before its weights are read."""
    if not is_calibrated(options.policy):
        make_policy(options.policy)
    elif options.calibration is None and options.pair in NAMED_PAIRS[1:]:  # tiny has its own
        raise SteerError(
            f"policy {options.policy} needs a --calibration FILE of pair {options.pair}: fit one "
            "with `steer calibrate`, or pass another --policy"
        )


def _settings(options: argparse.Namespace) -> ServerSettings:
    from engine.serve.settings import ServerSettings

    return ServerSettings(
        names=tuple(options.served_model_name or [_served_name(options)]),
        keys=_keys(options),
        host=options.host,
        hosts=tuple(options.allowed_host),
        origins=tuple(options.cors_origin),
        max_body_bytes=options.max_body_bytes,
        policy=options.policy,
        drain_timeout=options.drain_timeout,
        frames_per_second=options.frames_per_second,
        request_timeout=options.request_timeout,
        metrics_compat=options.metrics_compat == "vllm",
    )


def _keys(options: argparse.Namespace) -> tuple[str, ...]:
    """The keys of the flags, of the environment and of the file; one given twice counts once."""
    keys = list(options.api_key)
    if os.environ.get(_KEY_VARIABLE):
        keys.append(os.environ[_KEY_VARIABLE])
    if options.api_key_file:
        try:
            lines = options.api_key_file.read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            raise SteerError(f"--api-key-file {options.api_key_file}: cannot be read") from None
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise SteerError(f"--api-key-file {options.api_key_file} has no key: one a line")
        keys += found
    return tuple(dict.fromkeys(keys))


def _engine_config(options: argparse.Namespace) -> EngineConfig:
    speculation = None
    if not is_calibrated(options.policy):
        speculation = complete(make_policy(options.policy)).speculation
    guesses, most = speculation.tokens if speculation else 0, options.max_sequences
    return EngineConfig(
        # Rows for the guesses of every request that runs, as far as memory should be kept for them.
        max_drawn_rows=max(most, min(most * (guesses + 1), _DRAWN_ROWS)) if guesses else 0,
        max_waiting=options.max_waiting,
        max_sequences=options.max_sequences,
        max_context=options.max_context,
        arena_tokens=options.arena_tokens,
        retokenize=options.retokenize,
    )


def _calibration(options: argparse.Namespace, engine: Engine) -> Calibration | None:
    file = options.calibration
    return Calibration.load(file, engine.fingerprint) if file else None


def _server(
    engine: Engine, calibration: Calibration | None, settings: ServerSettings, url: str
) -> Server:
    from engine.aio import AsyncEngine
    from engine.serve.app import build_app
    from engine.serve.facts import Facts
    from engine.serve.lifecycle import Server
    from engine.serve.logs import announce
    from engine.serve.service import Service

    app = build_app(
        lambda metrics: Service(AsyncEngine(engine), engine, settings, metrics, calibration),
        settings,
        Facts.of(engine),
    )
    names = ", ".join(settings.names)
    line = f"serving {names} at {url} (base URL of OpenAI's clients: {url}/v1)"
    return Server(app, settings, lambda: announce(line))
