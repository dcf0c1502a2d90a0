"""Start and end of a server as a process: signals, exit statuses, open connections."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from engine.errors import SteerError
from engine.serve import lifecycle
from engine.serve.settings import ServerSettings
from tests.serve.conftest import Running, error_of
from tests.serve.stand_in import stand_in_server

ROOT = Path(__file__).parents[2]


@dataclass
class Process:
    """A server of its own."""

    process: subprocess.Popen[str]
    url: str

    def signal(self, which: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(which)
        if which is signal.SIGTERM:
            time.sleep(0.1)  # a signal that is on its way would swallow a second one

    def end(self) -> tuple[int, str]:
        """Its exit status and the rest of what it wrote."""
        _, written = self.process.communicate(timeout=30)
        return self.process.returncode, written


Start = Callable[[float], Process]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers with so many seconds to drain; kills those that are left."""
    started: list[Process] = []

    def one(seconds: float) -> Process:
        command = [sys.executable, "-m", "tests.serve.stand_in_process", str(seconds)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert process.stderr
        line = process.stderr.readline()
        found = re.fullmatch(r"serving tiny at (http://127\.0\.0\.1:\d+)\n", line)
        assert found, line
        started.append(Process(process, found[1]))
        return started[-1]

    yield one
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate()


def stop_is_seen(url: str) -> None:
    """Waits until new requests are refused."""
    end = time.monotonic() + 20
    while httpx2.get(f"{url}/ready").status_code != 503:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_stops_at_once(start: Start, which: signal.Signals):
    server = start(30)
    with httpx2.Client() as kept:  # a connection that stays open
        assert kept.get(f"{server.url}/health").status_code == 200
        began = time.monotonic()
        server.signal(which)
        code, written = server.end()
    assert code == 0 and time.monotonic() - began < 5
    assert "Traceback" not in written and "stopped" in written


def test_running_answers_end_and_new_ones_are_refused(start: Start):
    server = start(30)
    address = {"id": "running", "seconds": "1.5"}
    with httpx2.stream("GET", f"{server.url}/test/stream", params=address) as response:
        frames = response.iter_raw()
        next(frames)
        server.signal()
        stop_is_seen(server.url)
        refused = httpx2.get(f"{server.url}/v1/models")
        assert error_of(refused, 503)["code"] == "server_is_overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        assert httpx2.get(f"{server.url}/health").status_code == 200
        assert httpx2.get(f"{server.url}/metrics").status_code == 200
        assert b"".join(frames).endswith(b"data: [DONE]\n\n")
    code, written = server.end()
    assert code == 0 and "open=1" in written and "early" not in written


def test_answers_that_take_too_long_end_in_an_error(start: Start):
    server = start(0.3)
    began = time.monotonic()
    with httpx2.stream("GET", f"{server.url}/test/stream", params={"id": "long"}) as response:
        frames = response.iter_raw()
        next(frames)
        server.signal()
        assert b'"error"' in b"".join(frames)  # and its end: nothing was cut off
    code, written = server.end()
    assert code == 0 and "early" in written and time.monotonic() - began < 10


def test_a_second_signal_ends_it_now(start: Start):
    server = start(60)
    with httpx2.stream("GET", f"{server.url}/test/stream", params={"id": "long"}) as response:
        frames = response.iter_raw()
        next(frames)
        server.signal()
        stop_is_seen(server.url)
        began = time.monotonic()
        server.signal(signal.SIGINT)
        code, written = server.end()
    assert code == 130 and time.monotonic() - began < 3
    assert written.endswith("stopped at once\n")


def test_the_engine_is_closed_last(run: Callable[..., Running]):
    server = run()
    served = server.service.served
    server.server.handle_exit(signal.SIGTERM, None)
    server.thread.join(20)
    assert not server.thread.is_alive() and served.closed


def test_an_engine_that_is_stuck_does_not_keep_the_server(monkeypatch: pytest.MonkeyPatch, capsys):
    """It could not even be closed: the process ends."""
    monkeypatch.setattr(lifecycle, "_ABORTING_SECONDS", 0.1)
    left: list[int] = []
    opened = lifecycle.bind("127.0.0.1", 0)
    settings = ServerSettings(("tiny",), drain_timeout=0.1)

    def stop() -> None:
        server.config.app.state.service.served.drain = lambda timeout: asyncio.sleep(60)
        server.handle_exit(signal.SIGTERM, None)

    server = stand_in_server(settings, stop, leave=left.append)
    lifecycle.serve(server, opened)
    assert left == [1] and "stuck" in capsys.readouterr().err


def test_connections_are_kept_longer_than_clients_keep_them(plain: Running):
    assert plain.server.config.timeout_keep_alive >= 75
    with socket.create_connection(("127.0.0.1", plain.port), timeout=20) as connection:
        for seconds in (5.5, 0):  # uvicorn's own time is 5 s
            connection.sendall(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while b"0.1.0" not in answer:
                part = connection.recv(4096)
                assert part
                answer += part
            time.sleep(seconds)


def test_a_port_in_use_is_said_in_one_line(plain: Running):
    with pytest.raises(SteerError, match=rf"port {plain.port} of 127.0.0.1: .*--port") as caught:
        lifecycle.bind("127.0.0.1", plain.port)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a b", "x" * 300])
def test_a_host_that_is_not_here(host: str):
    with pytest.raises(SteerError, match=r"--host|cannot listen"):
        lifecycle.bind(host, 0)


def test_urls():
    with lifecycle.bind("::1", 0) as opened:
        assert re.fullmatch(r"http://\[::1\]:\d+", lifecycle.url_of(opened))
