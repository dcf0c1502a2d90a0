"""From prompts to answers: submit, follow all of them at once, collect."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request

from engine.aio.answers import Answers
from engine.request import Completion, Prompt
from engine.requests.stream import StreamEvent
from engine.serve.errors import ApiError, cut_short
from engine.serve.fields import ChatRequest, CompletionRequest
from engine.serve.reporting import Report
from engine.serve.routing import Route
from engine.serve.sampling import sampling_params, scored_top
from engine.serve.service import Service
from engine.serve.sse import gone

_T = TypeVar("_T")
AnyPrompt = str | list[int] | Prompt
Turn = list[tuple[int, StreamEvent]]


class ClientGoneError(Exception):
    """The client closed the connection before its answer was there."""


@dataclass
class Job:
    """A request on its way: what was asked, where it goes, and its answers.

    identity: id of the answer.
    created: Unix time in seconds.
    answers: of each prompt.
    """

    service: Service
    asked: Any
    route: Route
    report: Report
    identity: str
    created: int
    answers: list[Answers] = field(default_factory=list)
    close: Callable[[], object] = lambda: None

    @property
    def samples(self) -> int:
        """Answers to each prompt; choice i answers prompt i // samples."""
        return int(self.asked.samples)

    @property
    def prompt_lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return [len(each.prompt_token_ids) for each in self.answers]

    @property
    def choices(self) -> int:
        """Number of all answers."""
        return len(self.answers) * self.samples


async def submit(job: Job, read_prompts: Callable[[], Sequence[AnyPrompt]], count: int) -> None:
    """Queue all prompts of a request, or none; ``job.close()`` then aborts what is unfinished.

    Args:
        job: gets its answers.
        read_prompts: tokenises or renders; runs in a thread.
        count: prompts that it will give.

    Raises:
        QueueFullError: if there is no room, before anything is read.
        SteerError: if a prompt can never run.
    """
    service, asked = job.service, job.asked
    if scored_top(asked) is not None and not job.route.alone:
        raise ApiError(
            400,
            f"model {job.route.model}: the tokens of a prompt are scored by one model; ask for "
            'model "small" or "large"',
            param="model",
        )
    with ExitStack() as stack:
        job.answers = stack.enter_context(service.opened(job.identity))
        with service.served.room(count * job.samples) as room:
            prompts = await asyncio.to_thread(read_prompts)
            rest = service.engine.max_context - _length(prompts[0])  # a chat has only one
            params = sampling_params(asked, service.engine.default_params, rest)
            rank, seconds, policy = asked.priority or 0, _timeout(service, asked), job.route.policy
            for prompt in prompts:
                answers = await service.served.submit(
                    prompt, params, policy, priority=rank, timeout=seconds, room=room
                )
                job.answers.append(answers)
        job.report.started(job.choices)
        job.close = stack.pop_all().close


def _length(prompt: AnyPrompt) -> int:
    """Tokens of a prompt that is ids; of a text, whose limit does not depend on it, 0."""
    if isinstance(prompt, Prompt):
        return max(len(prompt.small), len(prompt.large))
    return 0 if isinstance(prompt, str) else len(prompt)


def _timeout(service: Service, asked: ChatRequest | CompletionRequest) -> float | None:
    limits = [t for t in (asked.timeout, service.settings.request_timeout) if t is not None]
    return min(limits, default=None)


async def unless_gone(request: Request, work: Awaitable[_T]) -> _T:
    """The result of ``work``, which is cancelled if the client goes away first.

    Raises:
        ClientGoneError: if it has gone.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.create_task(gone(request.receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def follow(job: Job) -> AsyncGenerator[Turn, None]:
    """All events of a request, as (choice, event), everything new at each turn."""
    samples = job.samples
    if len(job.answers) == 1:
        async with contextlib.aclosing(aiter(job.answers[0])) as turns:
            async for events in turns:
                job.report.turn(0, events, job.answers[0].cause)
                yield [(event.sample, event) for event in events]
        return
    # One place: a slow reader leaves the events with the answers, which merge their texts.
    news: asyncio.Queue[Turn | Exception | None] = asyncio.Queue(1)

    async def pump(first: int, answers: Answers) -> None:
        try:
            async with contextlib.aclosing(aiter(answers)) as turns:
                async for events in turns:
                    job.report.turn(first, events, answers.cause)
                    await news.put([(first + event.sample, event) for event in events])
            await news.put(None)
        except Exception as error:
            await news.put(error)

    pumps = [asyncio.create_task(pump(i * samples, each)) for i, each in enumerate(job.answers)]
    try:
        running = len(pumps)
        while running:
            turn = await news.get()
            if isinstance(turn, Exception):
                raise turn
            if turn is None:
                running -= 1
            else:
                yield turn
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def collect(job: Job) -> list[Completion]:
    """The completions of all choices, in order. ApiError if one could not be finished."""
    done: dict[int, Completion] = {}
    async with contextlib.aclosing(follow(job)) as turns:
        async for turn in turns:
            done |= {choice: event.completion for choice, event in turn if event.completion}
    for choice, completion in done.items():
        check_finished(job, choice, completion)
    return [done[choice] for choice in sorted(done)]


def check_finished(job: Job, choice: int, completion: Completion) -> None:
    """CutShortError on an answer that a deadline, an error or the server's end has ended."""
    cause = job.answers[choice // job.samples].cause
    if error := cut_short(completion.finish_reason, cause, completion.error):
        raise error


def finish_reason(completion: Completion) -> str:
    """OpenAI's name of how an answer ended."""
    reason = completion.finish_reason
    return {"repetition": "stop"}.get(reason, reason)


def stop_reason(completion: Completion) -> str | int | None:
    """The stop string, or the id of the stop token, that ended an answer."""
    if completion.finish_reason == "repetition":
        return "repetition"
    return completion.stop_reason
