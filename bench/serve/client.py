"""A client process: sends its share of a load, keeps the bytes, reads them at the end."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import h11

from bench.serve.answer import read_answer
from bench.serve.exchange import Connections, Exchange, request_bytes
from bench.serve.load import Asked, Load
from bench.serve.records import OK, SLOW, TIMEOUT, Record
from bench.serve.target import Target

_KEPT_BYTES = 128 << 20  # of answers that are not read yet; beyond it they are read at once
_BREATH = 0.05  # seconds before a place sends again after an error: a refused client waits too


@dataclass(frozen=True)
class Share:
    """What one of several processes does."""

    load: Load
    target: Target
    worker: int
    workers: int


@dataclass(frozen=True)
class Measured:
    """What a process measured. cpu: its seconds while the load ran; reading: those after it, of
    parsing the answers."""

    records: list[Record]
    cpu: float
    reading: float


def work(share: Share, pipe: Connection) -> None:
    """Says that it is ready, waits for the moment to begin, sends back a :class:`Measured`."""
    pipe.send("ready")
    begin: float = pipe.recv()
    client = Client(share, begin)
    gc.freeze()  # the collector need not walk what was imported, nor records again and again
    gc.set_threshold(50_000, 20, 50)
    before = time.process_time()
    _run(client.run())
    loaded = time.process_time()
    client.read_all()
    pipe.send(Measured(client.records, loaded - before, time.process_time() - loaded))
    pipe.close()


def _run(main: Coroutine[Any, Any, None]) -> None:
    runner: Callable[..., None] = asyncio.run
    if sys.platform != "win32":
        with suppress(ImportError):  # a loop that takes half the processor time, where installed
            import uvloop

            runner = uvloop.run
    runner(main)


class Client:
    """One process's requests."""

    def __init__(self, share: Share, begin: float) -> None:
        self.records: list[Record] = []
        self._share = share
        self._begin = begin
        self._connections = Connections(share.target)
        self._unread: list[tuple[Record, h11.Connection, list[tuple[float, bytes]]]] = []
        self._unread_bytes = 0

    async def run(self) -> None:
        """Send all, in a closed or an open loop, and wait for the last answer."""
        load = self._share.load
        asked = load.share(self._share.worker, self._share.workers)
        await asyncio.sleep(self._begin - time.monotonic())
        if load.rate is None:
            places = load.places(self._share.worker, self._share.workers)
            await asyncio.gather(*(self._place(asked) for _ in range(places)))
        else:
            await self._open_loop(asked)
        self._connections.close()

    def read_all(self) -> None:
        """Read the answers that were kept."""
        for record, parser, pieces in self._unread:
            read_answer(parser, pieces, record)
            if record.outcome == OK and record.slow:
                record.outcome = SLOW
        self._unread = []
        self._unread_bytes = 0

    async def _place(self, asked: Iterator[Asked]) -> None:
        """One of the places of a closed loop: the end of an answer begins the next request."""
        seconds = self._share.load.seconds
        while seconds is None or time.monotonic() < self._begin + seconds:
            request = next(asked, None)
            if request is None:
                return
            if not await self._one(request, time.monotonic()):
                await asyncio.sleep(_BREATH)

    async def _open_loop(self, asked: Iterator[Asked]) -> None:
        running: set[asyncio.Task[bool]] = set()
        for request in asked:
            assert request.due is not None
            due = self._begin + request.due
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._one(request, due))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    async def _one(self, asked: Asked, due: float) -> bool:
        """Send one request and keep what comes; False if nothing came."""
        target = self._share.target
        parser, request = request_bytes(target, target.body(asked, stream=True))
        record = Record(asked.index, due, time.monotonic(), slow=asked.pause > 0)
        self.records.append(record)
        try:
            exchange = await self._exchange(request, asked, record)
        except OSError as error:
            record.end = time.monotonic()
            record.outcome, record.message = "no connection", str(error)
            return False
        record.end = exchange.pieces[-1][0] if exchange.pieces else time.monotonic()
        self._keep(record, parser, exchange)
        return bool(exchange.pieces) and exchange.pieces[0][1].startswith(b"HTTP/1.1 200")

    async def _exchange(self, request: bytes, asked: Asked, record: Record) -> Exchange:
        used = True
        while used:  # a kept connection may have been closed as this request was sent
            exchange, used = await self._connections.take(asked.pause > 0)
            record.sent = time.monotonic()
            over = exchange.ask(request, asked)
            try:
                record.outcome = await asyncio.wait_for(over, self._share.target.timeout) or OK
            except TimeoutError:
                record.outcome = TIMEOUT
            if exchange.pieces or not exchange.closed:
                break
        return exchange

    def _keep(self, record: Record, parser: h11.Connection, exchange: Exchange) -> None:
        pieces = exchange.pieces
        if record.outcome == OK and pieces:
            self._connections.give_back(exchange)
        else:
            exchange.close()
        self._unread.append((record, parser, pieces))
        self._unread_bytes += sum(len(data) for _, data in pieces)
        if self._unread_bytes > _KEPT_BYTES:
            self.read_all()
