"""Clients that do what clients do: ask well and badly, read slowly, go away at any moment."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from bench.serve.load import sums

_HOST = "127.0.0.1"
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_WHOLE_STREAM = (b"data: [DONE]\n\n\r\n0\r\n\r\n", b"0\r\n\r\n")
_SMALL_BUFFER = 4096
# What a client does, and how often; a third of them leave.
KINDS = {
    "whole": 14,
    "stream": 16,
    "leaves": 20,
    "reads slowly": 4,
    "asks badly": 4,
    "tokenises": 2,
}
_BAD: tuple[tuple[str, bytes], ...] = (
    ("/v1/completions", b"{"),
    ("/v1/completions", b'{"prompt": "1+2?", "max_tokens": -1}'),
    ("/v1/completions", b'{"prompt": "1+2?", "model": "none"}'),
    ("/v1/completions", b'{"prompt": "' + b"1+2" * 2000 + b'"}'),
    ("/v1/chat/completions", b'{"messages": [{"role": "user"}]}'),
    ("/v1/chat/completions", b'{"messages": [{"role": "user", "content": "1+2?"}]}'),
    ("/v1/nothing", b"{}"),
)


@dataclass
class Tally:
    """What the clients saw.

    outcomes: by kind of client and what it saw: a status, "left", "cut off".
    faults: answers that no client should see, one line each.
    health: the longest that /health took, in seconds.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    health: float = 0.0

    def seen(self, outcome: str) -> int:
        """How many clients saw this."""
        return sum(count for (_, each), count in self.outcomes.items() if each == outcome)

    @property
    def requests(self) -> int:
        """All that were sent."""
        return self.outcomes.total()


class Chaos:
    """Clients of one server; each of their requests depends on the seed alone."""

    def __init__(self, port: int, longest: int, seed: int = 0) -> None:
        """``longest``: characters of a prompt, at most."""
        self.tally = Tally()
        self._port, self._longest, self._seed = port, longest, seed

    async def run(self, clients: int, seconds: float = 0.0, each: int = 1) -> None:
        """So many at once; each sends ``each`` requests, and more until the seconds are over."""
        self._seed += 1
        end = time.monotonic() + seconds
        watching = asyncio.create_task(self._watch_health())
        await asyncio.gather(*(self._client(number, end, each) for number in range(clients)))
        watching.cancel()

    async def _client(self, number: int, end: float, each: int) -> None:
        source = random.Random(f"{self._seed} {number}")
        done = 0
        while done < each or time.monotonic() < end:
            (kind,) = source.choices([*KINDS], [*KINDS.values()])
            try:
                outcome = await asyncio.wait_for(self._one(kind, source), 60)
            except TimeoutError:
                outcome = "nothing within 60 s"
            except OSError as error:
                outcome = type(error).__name__
            self.tally.outcomes[kind, outcome] += 1
            if not re.fullmatch(r"[24]\d\d|left", outcome):
                self.tally.faults.append(f"a client that {kind}: {outcome}")
            if outcome == "429":
                await asyncio.sleep(source.random())
            done += 1

    async def _one(self, kind: str, source: random.Random) -> str:
        if kind == "asks badly":
            path, body = source.choice(_BAD)
            return await self._ask(path, body)
        if kind == "tokenises":
            return await self._ask("/tokenize", json.dumps({"prompt": "1+2" * 5000}).encode())
        asked = self._asked(source)
        if kind == "leaves":
            return await self._leave(asked, source)
        asked["stream"] = kind != "whole"
        body = json.dumps(asked).encode()
        return await self._ask("/v1/completions", body, slowly=kind == "reads slowly")

    def _asked(self, source: random.Random) -> dict[str, Any]:
        longest = self._longest if source.random() < 0.2 else 30
        asked = {
            "prompt": sums(source, source.randint(5, longest)),
            "max_tokens": source.randint(1, 60),
            "n": source.choice([1, 1, 1, 2, 3]),
            "seed": source.randrange(1000),
            "model": source.choice(["tiny", "tiny", "small", "large"]),
            "stream": source.random() < 0.5,
        }
        more: list[dict[str, Any]] = [{}, {"ignore_eos": True}, {"logprobs": 2}, {"timeout": 0.5}]
        return asked | source.choice(more)

    async def _ask(self, path: str, body: bytes, slowly: bool = False) -> str:
        """The status of a whole answer, or what is wrong with it."""
        with self._connected(slowly) as made:
            reader, writer = await made
            writer.write(self._head(path, body) + body)
            parts = []
            while part := await reader.read(256 if slowly else 65536):
                parts.append(part)
                if slowly:
                    await asyncio.sleep(0.005)
        answer = b"".join(parts)
        status = _STATUS.match(answer)
        if not status:
            return "no answer"
        if b"text/event-stream" not in answer.partition(b"\r\n\r\n")[0]:
            return status[1].decode()
        ended = answer.endswith(b"0\r\n\r\n")
        late = b'"type":"timeout_error"' in answer
        return "200" if ended and (late or b"data: [DONE]" in answer) else "cut off"

    async def _leave(self, asked: dict[str, Any], source: random.Random) -> str:
        """In the middle of its request, before its answer, or in the middle of that."""
        body = json.dumps(asked).encode()
        request = self._head("/v1/completions", body) + body
        when = source.choice(["writing", "waiting", "reading"])
        if when == "writing":
            request = request[: source.randrange(len(request))]
        with self._connected(False, abort=source.random() < 0.5) as made:
            reader, writer = await made
            writer.write(request)
            await asyncio.sleep(source.random() * (0.3 if when == "waiting" else 0.02))
            if when == "reading":
                for _ in range(source.randint(1, 8)):
                    await reader.read(300)
        return "left"

    @contextmanager
    def _connected(self, slowly: bool, abort: bool = False) -> Iterator[Any]:
        """A connection (to be awaited), closed at the end of the block."""
        made: list[asyncio.StreamWriter] = []

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            opened = socket.socket()
            if slowly:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
            opened.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(opened, (_HOST, self._port))
            except BaseException:
                opened.close()
                raise
            reader, writer = await asyncio.open_connection(sock=opened, limit=_SMALL_BUFFER)
            made.append(writer)
            return reader, writer

        try:
            yield connect()
        finally:
            for writer in made:
                writer.transport.abort() if abort else writer.close()

    def _head(self, path: str, body: bytes) -> bytes:
        return (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()

    async def _watch_health(self) -> None:
        get = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        while True:
            began = time.monotonic()
            with suppress(OSError), self._connected(False) as made:
                reader, writer = await made
                writer.write(get)
                answer = await reader.read(65536)
                if not answer.startswith(b"HTTP/1.1 200"):
                    self.tally.faults.append(f"/health: {answer[:40]!r}")
            self.tally.health = max(self.tally.health, time.monotonic() - began)
            await asyncio.sleep(0.05)
