"""Answers to what no route has answered: exceptions that are no bad input."""

from __future__ import annotations

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from engine.serve import errors
from engine.serve.asgi import Layer, refuse
from engine.serve.logs import log, places


class LastResort(Layer):
    """Turns an exception of the app into an answer, and logs where it came from.

    An answer that has begun stays cut off: its client sees that it is not whole.
    """

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except ClientDisconnect:
            raise
        except Exception as error:
            answer = errors.of(error)
            if answer.status >= 500:
                fields = {"id": scope["state"]["request_id"], "error": places(error)}
                log.error("failed", extra={"fields": fields})
            if not begun:
                await refuse(answer, scope, receive, send)
