"""The chunks of a completion."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from engine.serve.answering import Job
from engine.serve.chunks import NULL, Chunks
from engine.serve.logprobs import CompletionLogprobs
from engine.serve.segments import Segment


def echoed_text(job: Job, prompt: int) -> str:
    """The text of a prompt, for ``echo``."""
    given: str | list[int] = job.asked.prompts[prompt]
    return given if isinstance(given, str) else job.service.engine.tokenizer.text_of(given)


class CompletionChunks(Chunks):
    """``text_completion``: its text, then how it ended; with ``echo`` the prompt first."""

    def __init__(self, job: Job) -> None:
        super().__init__(job, "text_completion")
        self._ids = bool(job.asked.return_token_ids)
        top = job.asked.top
        texts = job.service.token_texts
        self._logprobs = (
            None if top is None else [CompletionLogprobs(texts, top) for _ in range(job.choices)]
        )

    def opening(self) -> bytes:
        """The prompts, with ``echo`` or if their ids were asked for."""
        if not (self.job.asked.echo or self._ids):
            return b""
        return b"".join(self.framed(self._prompt_of(i)) for i in range(self.job.choices))

    def _prompt_of(self, choice: int) -> bytes:
        prompt = choice // self.job.samples
        text = echoed_text(self.job, prompt) if self.job.asked.echo else ""
        ids = b""
        if self._ids:
            given = list(self.job.answers[prompt].prompt_token_ids)
            ids = b',"prompt_token_ids":' + orjson.dumps(given)
        return self._choice(choice, orjson.dumps(text), NULL, ids)

    def pieces(self, choice: int, segment: Segment) -> Sequence[bytes]:
        """One choice, with the tokens of its text."""
        logprobs, ids = NULL, b""
        if segment.token_ids and self._logprobs is not None:
            logprobs = orjson.dumps(self._logprobs[choice].of(segment.token_ids, segment.logprobs))
        if segment.token_ids and self._ids:
            ids = b',"token_ids":' + orjson.dumps(segment.token_ids)
        if not (segment.text or segment.step) and logprobs == NULL and not ids:
            return []
        return [self._choice(choice, orjson.dumps(segment.text), logprobs, ids)]

    def end(self, choice: int, finish: bytes) -> Sequence[bytes]:
        """An empty text."""
        return [b'{"index":%d,"text":"","logprobs":null,%b}' % (choice, finish)]

    def _choice(self, choice: int, text: bytes, logprobs: bytes, ids: bytes) -> bytes:
        parts = (choice, text, logprobs, ids)
        return b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":null%b}' % parts
