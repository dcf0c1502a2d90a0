"""Log lines: of every request, with its id, and never with what was said."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO

import pytest

from engine.serve import logs
from tests.serve.conftest import Running


@dataclass
class Written:
    """What the loggers of a server write, as text or JSON."""

    form: str
    to: StringIO

    def lines(self, wanted: str = "", count: int = 0) -> list[str]:
        """Those that contain a text, once there are so many: a client has its answer before."""
        end = time.monotonic() + 20
        while True:
            found = [line for line in self.to.getvalue().splitlines() if wanted in line]
            if len(found) >= count:
                return found
            assert time.monotonic() < end, self.to.getvalue()
            time.sleep(0.01)


@pytest.fixture(params=["text", "json"])
def written(request: pytest.FixtureRequest) -> Iterator[Written]:
    """The server's logging at the lowest level, and afterwards what was before."""
    loggers = [logging.getLogger(name) for name in ("engine", "uvicorn")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    logs.configure(request.param, "debug")
    (handler,) = loggers[0].handlers
    assert isinstance(handler, logging.StreamHandler)
    to = StringIO()
    handler.setStream(to)
    yield Written(request.param, to)
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_no_line_has_what_was_said(written: Written, plain: Running):
    """Not at the lowest level either, and not where something fails."""
    client, secret = plain.client, "the-secret-prompt"
    client.post("/test/body", json={"count": 5, "stop": [secret]})
    client.post("/test/body", json={"count": secret})
    client.post("/test/body", content=secret, headers={"Content-Type": "application/json"})
    client.get(f"/nowhere?prompt={secret}", headers={"Authorization": f"Bearer {secret}"})
    client.get("/test/fails/other")  # its exception says "the secret prompt"
    plain.raw(b"GET /test/broken HTTP/1.1\r\nHost: localhost\r\n\r\n")
    written.lines("/test/", 5)
    assert "secret" not in "\n".join(written.lines())
    (first, second) = written.lines("RuntimeError at", 2)
    assert "stand_in.py" in first and "stand_in.py" in second


def test_a_requests_line(written: Written, plain: Running):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"X-Request-Id": "mine", "traceparent": parent}
    plain.client.post("/test/body", json={"count": 5}, headers=headers)
    (line,) = written.lines("mine", 1)
    if written.form == "json":
        found = json.loads(line)
        assert found["event"] == "request" and found["level"] == "info"
        assert found["seconds"] > 0 and found["time"].endswith("Z")
        wanted = {"id": "mine", "method": "POST", "route": "/test/body", "status": 200}
        wanted |= {"tokens": 5, "traceparent": parent}
        assert wanted.items() <= found.items()
        assert "aborted" not in found
    else:
        for part in (" info request ", "id=mine", "route=/test/body", "status=200"):
            assert part in line
        assert "tokens=5" in line and f"traceparent={parent}" in line


def test_a_client_that_leaves_is_said(written: Written, plain: Running):
    with plain.client.stream("GET", "/test/stream", params={"id": "leaves"}) as response:
        next(response.iter_raw())
    (line,) = written.lines("/test/stream", 1)
    assert "aborted" in line and "client" in line and "info" in line


def test_probes_are_quiet(written: Written, plain: Running):
    logging.getLogger("engine").setLevel(logging.INFO)
    for path in ("/health", "/ready", "/version", "/metrics", "/v1/models"):
        plain.client.get(path)
    written.lines("/v1/models", 1)
    assert len(written.lines()) == 1


def test_levels_and_announcements(written: Written, capsys: pytest.CaptureFixture[str]):
    logs.configure(written.form, "error")
    logs.log.warning("not this")
    logs.announce("serving tiny")
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)["event"] if written.form == "json" else line
    assert said == "serving tiny"


def test_values_stay_on_one_line(written: Written):
    logs.log.info("two\nlines", extra={"fields": {"name": 'a "b"\nc', "none": None}})
    (line,) = written.lines()
    if written.form == "json":
        assert json.loads(line)["name"] == 'a "b"\nc'
    else:
        assert line.endswith(r'info two lines name="a \"b\"\nc"')
