"""A tiny server with OpenAI's interface and known timing, for tests of clients."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FIRST, BETWEEN = 0.05, 0.01  # seconds before the first token, and between two
TEMPLATE = 5  # tokens that it adds to each chat


class Stub:
    """Answers by the name of the model: "plain", "usage" and "ids" tell tokens in these ways, two a
    chunk in the last two; "full" refuses, "breaks" sends an error, "cut" closes in the middle,
    "shuts" after each answer, without saying so before."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.left = 0  # streams that the client closed
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def streams(self) -> list[dict[str, Any]]:
        return [body for body in self.bodies if body["stream"]]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).lower():
                sizes = [line for line in head.split(b"\r\n") if line.startswith(b"content-length")]
                size = int(sizes[0].split(b":")[1]) if sizes else 0
                await self._answer(json.loads(await reader.readexactly(size) or b"{}"), writer)
        except asyncio.IncompleteReadError:
            pass
        except ConnectionError:
            self.left += 1
        finally:
            writer.close()

    async def _answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if not body:
            return _plain(writer, 200, {"data": [{"id": "plain"}]})
        self.bodies.append(body)
        text = body.get("prompt") or body["messages"][0]["content"]
        if not body["stream"]:
            more = 0 if "prompt" in body else TEMPLATE
            return _plain(writer, 200, {"usage": {"prompt_tokens": len(text) + more}})
        if body["model"] == "full":
            return _plain(writer, 429, {"error": {"message": "too many wait"}})
        await _stream(body, writer, len(text))
        if body["model"] in ("cut", "shuts"):
            raise ConnectionResetError
        return None


def _plain(writer: asyncio.StreamWriter, status: int, answer: object) -> None:
    content = json.dumps(answer).encode()
    head = f"HTTP/1.1 {status} Said\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)


async def _stream(body: dict[str, Any], writer: asyncio.StreamWriter, prompt: int) -> None:
    def send(event: object) -> None:
        content = event if isinstance(event, str) else json.dumps(event)
        data = f"data: {content}\n\n".encode()
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    model, tokens = body["model"], body["max_tokens"]
    each = 2 if model in ("usage", "ids") else 1
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    send({"choices": [{"delta": {"role": "assistant", "content": ""}}], "usage": None})
    await asyncio.sleep(FIRST)
    for written in range(each, tokens + 1, each):
        text = "1" * each
        choice = {"text": text} if "prompt" in body else {"delta": {"content": text}}
        chunk: dict[str, Any] = {"choices": [choice]}
        if model == "usage":
            chunk["usage"] = {"prompt_tokens": prompt, "completion_tokens": written}
        if model == "ids":
            choice["token_ids"] = [7] * each  # type: ignore[assignment]
        send(chunk)
        await writer.drain()
        await asyncio.sleep(BETWEEN)
        if model == "cut":
            return
        if model == "breaks":
            send({"error": {"message": "it broke"}})
            break
    send({"choices": [{"delta": {}, "finish_reason": "length"}]})
    send({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": tokens}})
    send("[DONE]")
    writer.write(b"0\r\n\r\n")
    await writer.drain()


@contextmanager
def stub_server() -> Iterator[Stub]:
    """A running one, in a thread of its own."""
    stub = Stub()
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(stub.serve, "127.0.0.1", 0))
    stub.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield stub
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
