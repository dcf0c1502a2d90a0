"""The server that is asked: its address, and the bytes of a request to it."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from bench.serve.load import Asked
from engine.errors import SteerError

ENDPOINTS = {"chat": "/chat/completions", "completions": "/completions"}
TOKEN_COUNTS: Mapping[str, Mapping[str, Any]] = {
    "final": {"stream_options": {"include_usage": True}},
    "usage": {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "ids": {"stream_options": {"include_usage": True}, "return_token_ids": True},
}


@dataclass(frozen=True)
class Target:
    """An endpoint of a server.

    prefix: the path before the endpoint's, as in ``/v1``.
    fields: of every request's body, besides the prompt and its lengths.
    timeout: seconds after which the client gives a request up.
    """

    host: str
    port: int
    secure: bool
    prefix: str
    endpoint: str = "chat"
    key: str | None = None
    timeout: float = 600.0
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str, **more: Any) -> Target:
        """From a base URL as OpenAI's clients take it. SteerError on anything else."""
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            parts, port = urlsplit(""), 0
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise SteerError(f"--base-url: expected http://HOST:PORT/v1, got {url!r}")
        prefix = parts.path.rstrip("/") or "/v1"
        return cls(parts.hostname, port, parts.scheme == "https", prefix, **more)

    @property
    def path(self) -> str:
        """Of the endpoint."""
        return self.prefix + ENDPOINTS[self.endpoint]

    @property
    def name(self) -> str:
        """For messages and rows: the URL without a key."""
        return f"{'https' if self.secure else 'http'}://{self.host}:{self.port}{self.prefix}"

    @property
    def context(self) -> ssl.SSLContext | None:
        """For a secure connection."""
        return ssl.create_default_context() if self.secure else None

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        headers = {
            "Host": f"{self.host}:{self.port}",
            "Content-Type": "application/json",
            "User-Agent": "steer-bench-serve",
        }
        return headers | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    def body(self, asked: Asked, **more: Any) -> bytes:
        """The JSON of a request; ``more`` wins over ``fields``."""
        content: dict[str, Any] = {"max_tokens": asked.max_tokens, **self.fields, **more}
        if self.endpoint == "completions":
            content["prompt"] = asked.prompt
        elif isinstance(asked.prompt, str):
            content["messages"] = [{"role": "user", "content": asked.prompt}]
        else:
            content["messages"] = asked.prompt
        return json.dumps(content).encode()
