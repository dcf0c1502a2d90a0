"""A server with stand-ins as a process: ``python -m tests.serve.stand_in_process SECONDS``."""

from __future__ import annotations

import sys

from engine.serve import lifecycle, logs
from engine.serve.settings import ServerSettings
from tests.serve.stand_in import stand_in_server

if __name__ == "__main__":
    logs.configure("text", "info")
    opened = lifecycle.bind("127.0.0.1", 0)
    settings = ServerSettings(("tiny",), drain_timeout=float(sys.argv[1]))
    url = lifecycle.url_of(opened)
    server = stand_in_server(settings, lambda: logs.announce(f"serving tiny at {url}"))
    lifecycle.serve(server, opened)
