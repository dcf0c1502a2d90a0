"""What is asked before the load: is there a server, which model, how long is a token?"""

from __future__ import annotations

import http.client
import json
import random
from dataclasses import replace
from typing import Any

from bench.serve.load import Asked, Load, sums
from bench.serve.target import Target
from engine.errors import SteerError

_SECONDS = 60.0  # for an answer of one token


class NoServerError(SteerError):
    """Nothing answers at the address, or it is no such server."""


def first_model(target: Target) -> str:
    """The first model that the server lists."""
    listed = _request(target, "GET", f"{target.prefix}/models")
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise NoServerError(
            f"{target.name}/models: lists no model; name one with --model"
        ) from None


def fitted(load: Load, target: Target) -> Load:
    """The load with the characters of a token and the tokens that the server puts around a prompt,
    from two requests of one token each. A load from a file is sent once and left as it is."""
    if load.entries:
        _prompt_tokens(target, replace(load.request(0), max_tokens=1))
        return load
    source = random.Random(load.seed)
    # Lengths near those of the load: the longer one must fit into the model's context too.
    most = max(24, round(load.prompt_tokens.typical))
    short, long = (sums(source, length) for length in (most // 2, most))
    tokens = [_prompt_tokens(target, Asked(0, text, 1)) for text in (short, long)]
    return with_tokens(load, (len(short), len(long)), (tokens[0], tokens[1]))


def with_tokens(load: Load, characters: tuple[int, int], tokens: tuple[int, int]) -> Load:
    """The load, fitted to the tokens of two prompts of so many characters."""
    more = tokens[1] - tokens[0]
    if more <= 0:
        raise NoServerError(f"the server counts {tokens[0]} and {tokens[1]} tokens of two prompts")
    each = (characters[1] - characters[0]) / more
    return replace(load, characters=each, overhead=max(0.0, tokens[0] - characters[0] / each))


def _prompt_tokens(target: Target, asked: Asked) -> int:
    body = target.body(asked, stream=False, max_tokens=1)
    settled = {k: v for k, v in json.loads(body).items() if k != "stream_options"}
    answer = _request(target, "POST", target.path, json.dumps(settled).encode())
    try:
        return int(answer["usage"]["prompt_tokens"])
    except (KeyError, TypeError):
        raise NoServerError(
            f"{target.name}: the answer has no usage.prompt_tokens, which lengths are set by"
        ) from None


def _request(target: Target, method: str, path: str, body: bytes | None = None) -> Any:
    kind = http.client.HTTPSConnection if target.secure else http.client.HTTPConnection
    connection = kind(target.host, target.port, timeout=_SECONDS)
    try:
        connection.request(method, path, body, target.headers)
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise NoServerError(f"{target.name}: no answer: {said}") from None
    finally:
        connection.close()
    if answer.status != 200:
        said = " ".join(content.decode(errors="replace").split())[:300]
        raise NoServerError(f"{target.name}: {method} {path}: {answer.status}: {said}")
    try:
        return json.loads(content)
    except ValueError:
        raise NoServerError(f"{target.name}: {method} {path}: the answer is not JSON") from None
