"""One connection to the server, with as little work as possible while an answer streams.

A read only stores its bytes and the time. h11 and the JSON parser go over them once the load has
ended, so that the client takes little of a processor that it may share with the server, and no
answer's parsing delays the clock of another one. The end of an answer is seen by its last bytes:
the chunk of length 0, or as many bytes as Content-Length says.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from typing import Any, cast

import h11

from bench.serve.load import Asked
from bench.serve.records import VANISHED
from bench.serve.target import Target

_LAST_CHUNK = b"\r\n0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_SLOW_BUFFER = 4096  # bytes of a slow reader's socket: the server soon sees that it is full


class Exchange(asyncio.Protocol):
    """A connection, and the request that is open on it. Made by :meth:`Connections.take`."""

    def __init__(self) -> None:
        self.pieces: list[tuple[float, bytes]] = []
        self.closed = False
        self.over: asyncio.Future[str] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Of asyncio.Protocol: store, then see whether the answer is whole."""
        self.pieces.append((time.monotonic(), data))
        if self.over is None or self.over.done():
            return
        if self._is_whole(data):
            self.over.set_result("")
        elif self._most_pieces is not None and len(self.pieces) > self._most_pieces:
            self.over.set_result(VANISHED)
        elif self._pause and self._transport:
            self._transport.pause_reading()
            self._loop.call_later(self._pause, self._resume)

    def connection_lost(self, error: Exception | None) -> None:
        """Of asyncio.Protocol."""
        self.closed = True
        if self.over is not None and not self.over.done():
            self.over.set_result("")

    def ask(self, request: bytes, asked: Asked) -> asyncio.Future[str]:
        """Send; the future ends with the answer, with the connection, or as the client leaves:
        its result is then the outcome "vanished", else empty."""
        assert self._transport
        self._loop = asyncio.get_running_loop()
        self.pieces = []
        self._pause = asked.pause
        self._most_pieces = None
        if asked.vanish is not None:
            self._most_pieces = int(asked.vanish * asked.max_tokens)
        self._missing: int | None = None  # bytes of an answer whose length is known
        self._chunked = self._closes = False
        self.over = self._loop.create_future()
        self._transport.write(request)
        return self.over

    def close(self) -> None:
        """At once, without waiting for the server."""
        self.closed = True
        if self._transport:
            self._transport.abort()

    @property
    def may_be_used_again(self) -> bool:
        """After a whole answer."""
        return not (self.closed or self._pause or self._closes)

    def _resume(self) -> None:
        if not self.closed and self._transport:
            self._transport.resume_reading()

    def _is_whole(self, data: bytes) -> bool:
        if self._chunked:
            if len(data) < len(_LAST_CHUNK):  # it may have come in two reads
                data = b"".join(piece for _, piece in self.pieces[-len(_LAST_CHUNK) :])
            return data.endswith(_LAST_CHUNK)
        if self._missing is None:
            read = b"".join(piece for _, piece in self.pieces)
            head, found, body = read.partition(b"\r\n\r\n")
            if not found:
                return False
            length = _LENGTH.search(head)
            self._chunked = length is None
            self._closes = bool(_CLOSE.search(head))
            if length is None:
                return read.endswith(_LAST_CHUNK)
            self._missing = int(length[1]) - len(body)
        else:
            self._missing -= len(data)
        return self._missing <= 0


class Connections:
    """Connections to one server that are kept between requests."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._free: list[Exchange] = []
        self._context = target.context

    async def take(self, slow: bool) -> tuple[Exchange, bool]:
        """A connection, and whether it was used before. OSError if there is no server."""
        while self._free and not slow:
            kept = self._free.pop()
            if not kept.closed:
                return kept, True
        loop = asyncio.get_running_loop()
        where: dict[str, Any] = {"host": self._target.host, "port": self._target.port}
        if slow:
            where = {"sock": await self._small_socket(loop)}
            if self._context:
                where["server_hostname"] = self._target.host
        _, made = await loop.create_connection(Exchange, ssl=self._context, **where)
        return made, False

    def give_back(self, exchange: Exchange) -> None:
        """After a whole answer."""
        if exchange.may_be_used_again:
            self._free.append(exchange)
        else:
            exchange.close()

    def close(self) -> None:
        """Those that are kept."""
        for each in self._free:
            each.close()

    async def _small_socket(self, loop: asyncio.AbstractEventLoop) -> socket.socket:
        (family, kind, protocol, _, address), *_ = await loop.getaddrinfo(
            self._target.host, self._target.port, type=socket.SOCK_STREAM
        )
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER)
        made.setblocking(False)
        try:
            await loop.sock_connect(made, address)
        except OSError:
            made.close()
            raise
        return made


def request_bytes(target: Target, body: bytes) -> tuple[h11.Connection, bytes]:
    """A POST, and the parser that is to read its answer."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    headers = [*target.headers.items(), ("Content-Length", str(len(body)))]
    head = parser.send(h11.Request(method="POST", target=target.path, headers=headers))
    rest = parser.send(h11.Data(data=body)), parser.send(h11.EndOfMessage())
    return parser, b"".join(part or b"" for part in (head, *rest))
