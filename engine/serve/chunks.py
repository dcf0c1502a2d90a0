"""What the chunks of both endpoints share: bytes put together by hand, JSON only for texts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence

import orjson

from engine.request import Completion
from engine.serve import errors
from engine.serve.answering import Job, Turn, check_finished, finish_reason, follow, stop_reason
from engine.serve.errors import ApiError
from engine.serve.sampling import drops_text
from engine.serve.segments import Segment, segments
from engine.serve.sse import DONE, frame
from engine.serve.steer_object import choice_summary, step_object
from engine.serve.usage import counts, usage_of

_log = logging.getLogger(__name__)
NULL = b"null"


class Chunks(ABC):
    """Writes the chunks of one request.

    job: the request; its prompts have been submitted.
    """

    def __init__(self, job: Job, kind: str) -> None:
        """``kind``: the chunks' ``object``."""
        self.job = job
        asked, options = job.asked, job.asked.stream_options
        head = {
            "id": job.identity,
            "object": kind,
            "created": job.created,
            "model": job.route.model,
            "system_fingerprint": job.service.engine.fingerprint,
        }
        self._head = orjson.dumps(head).removesuffix(b"}")
        self._prompt = sum(job.prompt_lengths)
        self._written = 0
        self._tells = bool(options and options.include_usage)
        self._always = bool(options and options.continuous_usage_stats)
        self._drops = drops_text(asked)
        self.done: dict[int, Completion] = {}

    @abstractmethod
    def opening(self) -> bytes:
        """The frames before any text."""

    @abstractmethod
    def pieces(self, choice: int, segment: Segment) -> Sequence[bytes]:
        """The choices, as JSON, that tell a segment with text or tokens, or a step's opening."""

    @abstractmethod
    def end(self, choice: int, finish: bytes) -> Sequence[bytes]:
        """The last choices of one answer. ``finish``: the fields that say how it ended."""

    def turn(self, turn: Turn) -> bytes:
        """The frames of all events of a turn. ApiError if an answer cannot be finished."""
        return b"".join(self._segment(*each) for each in segments(turn))

    def ending(self) -> bytes:
        """The usage, if it was asked for, and the mark of the end."""
        if not self._tells:
            return DONE
        done = [self.done[choice] for choice in sorted(self.done)]
        usage = usage_of(self.job.service.engine, self.job.prompt_lengths, done, self._drops)
        return frame(b'%b,"choices":[],"usage":%b}' % (self._head, orjson.dumps(usage))) + DONE

    def framed(self, choice: bytes, extra: bytes = b"") -> bytes:
        """A frame with one choice. ``extra``: further fields, each after a comma."""
        usage = b""
        if self._always:
            usage = b',"usage":' + orjson.dumps(counts(self._prompt, self._written))
        elif self._tells:
            usage = b',"usage":null'
        return frame(b'%b,"choices":[%b]%b%b}' % (self._head, choice, usage, extra))

    def _segment(self, choice: int, segment: Segment) -> bytes:
        if segment.completion is not None:
            return self._end(choice, segment.completion)
        if self._drops:
            return b""
        self._written += len(segment.token_ids)
        extra = b""
        if segment.step is not None:
            opened = {"choice": choice, "step": step_object(segment.step)}
            extra = b',"steer":' + orjson.dumps(opened)
        pieces = self.pieces(choice, segment)
        frames = [self.framed(pieces[0], extra)] if pieces else []
        return b"".join([*frames, *map(self.framed, pieces[1:])])

    def _end(self, choice: int, completion: Completion) -> bytes:
        check_finished(self.job, choice, completion)
        self.done[choice] = completion
        finish = b'"finish_reason":%b,"stop_reason":%b' % (
            orjson.dumps(finish_reason(completion)),
            orjson.dumps(stop_reason(completion)),
        )
        *before, last = self.end(choice, finish)
        summary = {"choice": choice, **choice_summary(completion)}
        extra = b',"steer":' + orjson.dumps(summary)
        return b"".join([*map(self.framed, before), self.framed(last, extra)])


async def frames(job: Job, chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """The frames of a whole request; an error is the last one.

    After each turn it waits a little, the longer the more streams are open: what settles meanwhile
    goes into one frame. A frame costs the server as much as a token of a very small model does.
    """
    service = job.service
    yield chunks.opening()
    service.streams += 1
    try:
        async with contextlib.aclosing(follow(job)) as turns:
            async for turn in turns:
                yield chunks.turn(turn)
                if not any(event.completion for _, event in turn):
                    await asyncio.sleep(service.streams / service.settings.frames_per_second)
        # Before the client knows the end: it may use the id again at once.
        job.service.ended(job.identity, job.answers)
        yield chunks.ending()
    except Exception as error:
        if not isinstance(error, ApiError):
            _log.exception("a stream failed")
        job.report.failed(error)
        job.service.ended(job.identity, job.answers)
        yield frame(errors.of(error).body())
    finally:
        service.streams -= 1
