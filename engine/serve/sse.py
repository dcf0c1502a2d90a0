"""Server-sent events: one stream of ``data:`` frames, written as they come."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
_SILENCE = 15.0  # seconds after which a comment says that the stream is alive
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_log = logging.getLogger(__name__)


def frame(data: bytes) -> bytes:
    """One event; ``data``: a JSON text without line ends, as orjson writes it."""
    return b"data: " + data + b"\n\n"


async def gone(receive: Receive) -> None:
    """Returns once the client has closed the connection. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A response of frames from a generator, which ends with the client, whatever ends first.

    A client that goes away, or that takes nothing for ``patience`` seconds, ends the generator.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        close: Callable[[str], object],
        patience: float,
        silence: float = _SILENCE,
    ) -> None:
        """
        Args:
            frames: each item is one or more whole frames; an empty one is skipped.
            close: called once at the end, also if ``frames`` never began, with what ends answers
                that are not finished: "client" or "slow_reader".
            patience: seconds for one write.
            silence: seconds without a frame after which a comment is sent.
        """
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._frames, self._close = frames, close
        self._patience, self._silence = patience, silence
        self._sent = time.monotonic()
        self._begun: float | None = None  # when the write that is under way began

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything."""
        writing = asyncio.create_task(self._write(send))
        watching = asyncio.create_task(self._watch(send))
        tasks = [writing, watching, asyncio.create_task(gone(receive))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._frames.aclose()
            ended = [task.exception() for task in (watching, writing) if not task.cancelled()]
            error = next((each for each in ended if each is not None), None)
            slow = isinstance(error, SlowReaderError)
            self._close("slow_reader" if slow else "client")
        if error is not None and not slow:  # a server closes the connection of a cut-off answer
            raise error

    async def _write(self, send: Send) -> None:
        start: Message = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        await self._send(send, start)
        async for frames in self._frames:
            if frames:
                await self._body(send, frames)
        await self._body(send, b"", more=False)

    async def _watch(self, send: Send) -> None:
        """Write a comment after a silence; SlowReaderError once a write takes too long.

        One look now and then for the whole stream: a timer for each write costs more than it.
        """
        pause = max(0.01, min(self._patience, self._silence) / 4)
        while True:
            await asyncio.sleep(pause)
            now = time.monotonic()
            if self._begun is not None and now - self._begun >= self._patience:
                raise self._too_slow()
            if self._begun is None and now - self._sent >= self._silence:
                try:
                    async with asyncio.timeout(self._patience):  # nothing else watches this write
                        await self._body(send, PING)
                except TimeoutError:
                    raise self._too_slow() from None

    def _too_slow(self) -> SlowReaderError:
        _log.warning("a client took nothing for %g s: its stream ends", self._patience)
        return SlowReaderError()

    async def _body(self, send: Send, body: bytes, more: bool = True) -> None:
        await self._send(send, {"type": "http.response.body", "body": body, "more_body": more})

    async def _send(self, send: Send, message: Message) -> None:
        self._begun = time.monotonic()
        await send(message)
        self._begun, self._sent = None, time.monotonic()


class SlowReaderError(OSError):
    """The client does not read what it asked for."""
