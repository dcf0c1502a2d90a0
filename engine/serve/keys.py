"""API keys: everything but the probes needs one, if there are any."""

from __future__ import annotations

import hashlib
import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from engine.serve.asgi import PROBES, Layer, header, refuse
from engine.serve.errors import ApiError

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="steer"'}


class KeyCheck(Layer):
    """Lets only requests in that carry one of the keys: ``Authorization: Bearer KEY``.

    keys: as in the settings; none: everything is let in.
    """

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        super().__init__(app)
        self._digests = [_digest(key.encode()) for key in keys]

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._digests and scope["path"] not in PROBES:
            error = self._fault(header(scope, b"authorization"))
            if error is not None:
                await refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _fault(self, value: str | None) -> ApiError | None:
        scheme, _, key = (value or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            return _unauthorised("this server asks for a key: send Authorization: Bearer KEY")
        given = _digest(key.strip().encode())
        # All are compared, so that the time says nothing about which one was close.
        found = [hmac.compare_digest(given, known) for known in self._digests]
        return None if any(found) else _unauthorised("the API key is wrong")


def _digest(key: bytes) -> bytes:
    """Of one length for all keys, so that no comparison tells a key's length."""
    return hashlib.sha256(key).digest()


def _unauthorised(message: str) -> ApiError:
    return ApiError(
        401, message, "authentication_error", code="invalid_api_key", headers=_CHALLENGE
    )
