"""What a server allows, how it is named, and who may use it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from engine.config import ROLES
from engine.errors import SteerError

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s?#]+")
_COUNTS = (
    "max_body_bytes",
    "max_n",
    "max_stops",
    "max_prompts",
    "max_messages",
    "max_tools",
    "max_logit_bias",
    "frames_per_second",
)


@dataclass(frozen=True)
class ServerSettings:
    """Names, limits and guards of a server.

    names: model names that route by the policy; the first is the default. The models themselves
        are served as "small" and "large".
    keys: API keys, any of which opens the server; empty: no key is asked for.
    host: the name or address that is listened on.
    hosts: further names in a request's Host header; "*" allows any, ".example.org" all below it.
    origins: pages' origins that browsers may call from, as in "https://chat.example.org"; "*": any.
    max_body_bytes: of a request's body.
    max_n: answers to one prompt, at most; with several prompts ``max_prompts`` bounds them all.
    max_stops, max_prompts, max_messages, max_tools, max_logit_bias: entries of these lists.
    policy: the policy of requests that do not name one.
    drain_timeout: seconds that running requests get to end in when the server stops.
    slow_reader_timeout: seconds after which a stream is ended of which nothing could be sent.
    frames_per_second: of all streams together, about: where more tokens come, several share one.
    request_timeout: seconds that an answer may take; None: as long as it takes.
    metrics_compat: whether /metrics has vLLM's names too.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...] = field(default=(), repr=False)
    host: str = "127.0.0.1"
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_body_bytes: int = 16 << 20
    max_n: int = 16
    max_stops: int = 16
    max_prompts: int = 128
    max_messages: int = 4096
    max_tools: int = 128
    max_logit_bias: int = 1024
    policy: str = "steer"
    drain_timeout: float = 30.0
    slow_reader_timeout: float = 60.0
    frames_per_second: int = 1250
    request_timeout: float | None = None
    metrics_compat: bool = False

    def __post_init__(self) -> None:
        self._check_names()
        self._check_access()
        for name in _COUNTS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SteerError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in ("drain_timeout", "slow_reader_timeout"):
            _check_seconds(name, getattr(self, name), least=0.0)
        if self.request_timeout is not None:
            _check_seconds("request_timeout", self.request_timeout, least=1e-3)

    def _check_access(self) -> None:
        for key in self.keys:
            if not re.fullmatch(r"[!-~]+", key):
                raise SteerError(
                    "an API key must be one or more printable ASCII characters without spaces"
                )
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise SteerError(
                    "--cors-origin takes a scheme and a host without a path, as in "
                    f"https://chat.example.org, or *; got {origin!r}"
                )
        for name in self.hosts:
            if not name or re.search(r"[\s/]", name):
                raise SteerError(
                    f"--allowed-host takes a host name such as models.example.org, got {name!r}"
                )

    def _check_names(self) -> None:
        if not self.names:
            raise SteerError("a server needs a model name: --served-model-name NAME")
        for name in self.names:
            if name in ROLES:
                raise SteerError(
                    f"the name {name!r} is taken by that model itself: choose another "
                    "--served-model-name"
                )
            if not name.strip() or not name.isprintable():
                raise SteerError(f"a served model name must be printable text, got {name!r}")
        if len(set(self.names)) < len(self.names):
            raise SteerError("--served-model-name gives the same name twice")


def _check_seconds(name: str, value: float, least: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < least:
        raise SteerError(f"{name} must be a number of seconds of at least {least:g}, got {value!r}")
