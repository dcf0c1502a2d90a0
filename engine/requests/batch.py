"""A batch of requests: all are checked before any runs, and queued as there is room."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Set
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from engine.accounting.ledger import Usage
from engine.errors import SteerError
from engine.params import SamplingParams
from engine.progress import progress_bar
from engine.replay.trace import TraceWriter
from engine.request import Completion, Prompt
from engine.requests.driver import Driver
from engine.requests.input_processor import CheckedRequest, InputProcessor, check_timing
from engine.routing.policy import Policy, PolicyBase, complete

_NO_REQUEST = -1
ERRORS = ("raise", "return")


def listed_prompts(prompts: Iterable[Any], call: str = "generate()") -> list[Any]:
    """The prompts as a list. SteerError on one prompt, and on collections without an order."""
    wrong = isinstance(prompts, str | bytes | bytearray | Mapping | Set | Prompt)
    if wrong or not isinstance(prompts, Iterable):
        raise SteerError(
            f"{call} takes a list of prompts, got one {type(prompts).__name__}; for one prompt "
            "write [prompt]"
        )
    return list(prompts)


def for_each(value: Any, count: int, name: str, resolve: Callable[[Any], Any]) -> list[Any]:
    """One value for each prompt: those of a list or tuple, or the same for all.

    Args:
        resolve: makes the value of what the caller gave; asked once for each object.

    Raises:
        SteerError: if a list has another length.
    """
    if not isinstance(value, list | tuple) or isinstance(value, Policy):
        return [resolve(value)] * count
    if len(value) != count:
        raise SteerError(
            f"{name} must be one for all prompts or a list of one for each: got {len(value)} for "
            f"{count} prompts"
        )
    resolved: dict[Any, Any] = {}
    for each in value:
        key = each if isinstance(each, str) else id(each)
        if key not in resolved:
            resolved[key] = resolve(each)
    return [resolved[each if isinstance(each, str) else id(each)] for each in value]


def trace_writer(
    path: str | Path | None, fingerprint: str, policies: Sequence[Policy]
) -> TraceWriter | None:
    """The writer of a trace; None without a path. SteerError on several policies."""
    kinds = {(policy.name, _window(policy)) for policy in map(complete, policies)}
    if path is None or not kinds:
        return None
    if len(kinds) > 1:
        raise SteerError(
            f"a trace is of one policy, got {len(kinds)}: call generate() once for each"
        )
    ((name, window),) = kinds
    return TraceWriter(Path(path), fingerprint, name, window)


def _window(policy: PolicyBase) -> str:
    """The window of a policy's signals; with a mask they are no other policy's."""
    return f"{policy.window}{', masked' if policy.mask else ''}"


class Batch:
    """The requests of one call of ``generate()``."""

    def __init__(
        self,
        inputs: InputProcessor,
        driver: Driver,
        rows: Iterable[tuple[Any, SamplingParams, Policy, int]],
        timeout: float | None,
        errors: str,
    ) -> None:
        """Check all prompts.

        Args:
            rows: of each prompt the prompt, its parameters, its policy and its priority.
            errors: "raise", or "return" to answer a prompt that cannot run with its error.

        Raises:
            SteerError: on a prompt that cannot run, with its index, if errors are to be raised.
        """
        if errors not in ERRORS:
            raise SteerError(f'errors must be "raise" or "return", got {errors!r}')
        check_timing(0, timeout)
        self._inputs, self._driver = inputs, driver
        self._waiting: deque[tuple[int, CheckedRequest]] = deque()
        self._places: dict[int, tuple[int, int]] = {}  # by request: its prompt and sample
        self._done: dict[tuple[int, int], Completion] = {}
        for number, (prompt, wanted, policy, priority) in enumerate(rows):
            try:
                request = inputs.check(prompt, wanted, policy, priority, timeout)
                self._waiting.append((number, request))
            except SteerError as error:
                if errors == "raise":
                    raise error.within(f"prompt {number}") from None
                for sample in range(wanted.n):
                    self._done[number, sample] = refused(str(error), sample)

    def run(self) -> Generator[Completion, None, None]:
        """Run all requests; completions come as they finish, refused prompts first.

        An exception, or closing the iterator, aborts the requests that have not finished.
        """
        yield from list(self._done.values())
        finished = self._driver.finished
        try:
            while self._waiting or self._places:
                while self._waiting and self._inputs.has_room(self._waiting[0][1].params.n):
                    number, request = self._waiting[0]
                    for sample, queued in enumerate(self._inputs.queue(request)):
                        self._places[queued] = number, sample
                    self._waiting.popleft()
                self._driver.advance()
                for queued in [r for r in finished if r in self._places]:
                    completion = finished.pop(queued)
                    self._done[self._places.pop(queued)] = completion
                    yield completion
        except BaseException:
            self._driver.cancel(self._places)
            raise

    def answers(
        self, writer: TraceWriter | None = None, progress: bool = False
    ) -> list[Completion]:
        """Run all requests; completions are in the order of the prompts and their samples.

        Args:
            writer: of a trace, which gets each request as it finishes.
            progress: show a bar on standard error.
        """
        total = len(self._done) + sum(request.params.n for _, request in self._waiting)
        bar = progress_bar(total, progress)
        with writer or nullcontext(), bar as shown, closing(self.run()) as finished:
            for completion in finished:
                shown.update()
                if writer and completion.request_id != _NO_REQUEST:
                    writer.add(completion)
        return [self._done[place] for place in sorted(self._done)]


def refused(error: str, sample: int = 0) -> Completion:
    """The answer to a prompt that cannot run; no request has its id."""
    return Completion(_NO_REQUEST, (), "", (), "error", (), Usage(), sample=sample, error=error)
