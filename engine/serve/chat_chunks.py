"""The chunks of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from engine.serve.answering import Job
from engine.serve.chunks import NULL, Chunks
from engine.serve.logprobs import chat_logprobs
from engine.serve.reasoning import ReasoningSplitter, opens_thinking
from engine.serve.segments import Segment


class ChatChunks(Chunks):
    """``chat.completion.chunk``: a role for each choice, then its text, then how it ended."""

    def __init__(self, job: Job) -> None:
        super().__init__(job, "chat.completion.chunk")
        self._top = job.asked.top
        self._ids = bool(job.asked.return_token_ids)
        texts = job.service.token_texts
        thinking = [opens_thinking(texts.tail(a.prompt_token_ids)) for a in job.answers]
        self._split = [ReasoningSplitter(thinking[i // job.samples]) for i in range(job.choices)]

    def opening(self) -> bytes:
        """The role, for each choice; the prompt's ids with the first, if they were asked for."""
        role = b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,'
        role += b'"finish_reason":null}'
        extra = b""
        if self._ids:
            ids = list(self.job.answers[0].prompt_token_ids)
            extra = b',"prompt_token_ids":' + orjson.dumps(ids)
        first, *others = (role % choice for choice in range(self.job.choices))
        return b"".join([self.framed(first, extra), *map(self.framed, others)])

    def pieces(self, choice: int, segment: Segment) -> Sequence[bytes]:
        """Thoughts and content apart; the tokens with the first of them."""
        deltas = _deltas(*self._split[choice].take(segment.text))
        tokens = self._top is not None or self._ids
        if not deltas and (segment.step or (tokens and segment.token_ids)):
            deltas = [b"{}"]
        return [
            self._choice(choice, delta, segment if i == 0 else None)
            for i, delta in enumerate(deltas)
        ]

    def end(self, choice: int, finish: bytes) -> Sequence[bytes]:
        """What was held back, and an empty delta."""
        held = [self._choice(choice, d, None) for d in _deltas(*self._split[choice].finish())]
        return [*held, b'{"index":%d,"delta":{},"logprobs":null,%b}' % (choice, finish)]

    def _choice(self, choice: int, delta: bytes, segment: Segment | None) -> bytes:
        logprobs, ids = NULL, b""
        if segment is not None and segment.token_ids:
            if self._top is not None:
                texts = self.job.service.token_texts
                made: Any = chat_logprobs(texts, segment.token_ids, segment.logprobs, self._top)
                logprobs = orjson.dumps(made)
            if self._ids:
                ids = b',"token_ids":' + orjson.dumps(segment.token_ids)
        parts = (choice, delta, logprobs, ids)
        return b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":null%b}' % parts


def _deltas(thoughts: str, content: str) -> list[bytes]:
    """Thoughts under both names that clients read, and content."""
    deltas = []
    if thoughts:
        text = orjson.dumps(thoughts)
        deltas.append(b'{"reasoning":%b,"reasoning_content":%b}' % (text, text))
    if content:
        deltas.append(b'{"content":%b}' % orjson.dumps(content))
    return deltas
