"""URLs as clients really build them: doubled slashes, a doubled /v1, slashes at the end, HEAD."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from urllib.parse import quote

from starlette.types import Receive, Scope, Send

from engine.serve.asgi import Layer
from engine.serve.errors import ApiError


class UrlForms(Layer):
    """Takes a request's URL to the form that the routes have, and HEAD to GET."""

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = settled(scope["path"])
        if path != scope["path"]:
            scope["path"], scope["raw_path"] = path, quote(path).encode()
        if scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        # The server itself leaves the body out, since its own scope still says HEAD.
        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, receive, send)
        finally:
            if "route" in inner:
                scope["route"] = inner["route"]


def settled(path: str) -> str:
    """A path with single slashes, one /v1, none at its end; /models is understood as /v1/models."""
    path = re.sub(r"/{2,}", "/", path)
    if path.startswith("/v1/v1/"):
        path = path.removeprefix("/v1")
    if len(path) > 1:
        path = path.rstrip("/")
    if path == "/models" or path.startswith("/models/"):
        path = f"/v1{path}"
    return path


def no_such_url(path: str, known: Iterable[str]) -> ApiError:
    """404 with the right URL, if one of the ``known`` paths looks like the one asked for."""
    paths = sorted(p for p in known if "{" not in p)
    ends = [p for p in paths if f"/v1{path}" == p or path.endswith(p)]
    right = ends or difflib.get_close_matches(path.lower()[:200], paths, n=1, cutoff=0.6)
    if right:
        hint = f"did you mean {max(right, key=len)} ?"
    else:
        hint = "the API's URLs begin with /v1, and /openapi.json lists them all"
    return ApiError(404, f"there is nothing at this URL: {hint}", code="unknown_url")
