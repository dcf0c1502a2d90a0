"""Turns a prompt, its parameters and a policy into sequences of the core."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from engine import _core
from engine._core import LARGE
from engine.config import ROLES
from engine.errors import ContextLengthError, QueueFullError, SteerError, about
from engine.execution.draw_key import draw_key
from engine.params import THINK_END, SamplingParams
from engine.request import Prompt
from engine.requests.driver import Driver
from engine.requests.prompt_ids import check_range, token_ids
from engine.requests.prompt_scoring import check_scored, prompt_logs, scored_model
from engine.requests.request_state import RequestState
from engine.requests.retokenize import Retokenizer, TokenizerBridge, check_drafts, check_relayed
from engine.requests.stops import Stops, find_stops
from engine.routing.audit import Audit
from engine.routing.policy import Policy, PolicyBase, complete
from engine.routing.speculation import Speculation
from engine.routing.together import Together
from engine.text.thinking import closes_thinking
from engine.text.tokenizer import Tokenizer

_NOBODY = _core.NOBODY


@dataclass(frozen=True)
class RequestLimits:
    """``max_waiting`` of the queue (0: no limit), ``max_context`` of a sequence in tokens."""

    max_waiting: int
    max_context: int


@dataclass(frozen=True)
class CheckedRequest:
    """A request that can run, and so waits only for room in the queue.

    prompt: ids, or those of each model if their tokens differ.
    """

    prompt: list[int] | Prompt
    params: SamplingParams
    policy: PolicyBase
    stops: Stops
    priority: int = 0
    timeout: float | None = None
    settle_at_once: bool = True

    @cached_property
    def ids(self) -> list[int]:
        """The prompt in the ids of the core's sequence."""
        return list(self.prompt.small) if isinstance(self.prompt, Prompt) else self.prompt


class InputProcessor:
    """Checks requests and queues them; SteerError on a request that can never run."""

    def __init__(
        self,
        scheduler: _core.Scheduler,
        tokenizer: Tokenizer,
        driver: Driver,
        eos_ids: Sequence[int],
        defaults: SamplingParams,
        limits: RequestLimits,
        speculation: Speculation,
        vocabularies: TokenizerBridge | None = None,
    ) -> None:
        """
        Args:
            eos_ids: tokens that end a text unless a request ignores them.
            defaults: parameters of requests without any.
            speculation: of requests whose policy has none.
            vocabularies: set if the models have different tokens; ``tokenizer`` and ``eos_ids`` are
                then the small model's.
        """
        self._bridge = vocabularies
        if vocabularies:
            check_drafts(speculation)
        self._limits = limits
        self._defaults = defaults
        self._speculation = speculation
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._driver = driver
        known = tuple(i for i in eos_ids if i < tokenizer.size)
        # Tokenizers and ids that end a text, of both models if they differ.
        self._vocabularies: tuple[tuple[Tokenizer, ...], tuple[tuple[int, ...], ...]] = (
            (vocabularies.tokenizers, (known, vocabularies.eos_ids[1]))
            if vocabularies
            else ((tokenizer,), (known,))
        )

    def queue(self, request: CheckedRequest) -> range:
        """Queue ``params.n`` samples, all or none, and return their ids.

        Raises:
            QueueFullError: if too many requests wait.
        """
        first = self._add(request)
        params = request.params
        retokenizer = None
        if isinstance(request.prompt, Prompt):
            retokenizer = self._retokenizer(request, request.prompt)
        seed = secrets.randbits(64) if params.seed is None else params.seed
        requests = range(first, first + params.n)
        key, length = draw_key(seed, request.ids), len(request.ids)
        logs = prompt_logs(params, request.policy)
        for sample, (number, log) in enumerate(zip(requests, logs, strict=True)):
            live = RequestState(
                params, seed, request.policy, length, request.stops.ids, sample, key, retokenizer
            )
            live.prompt_log = log
            self._driver.start(number, live, request.timeout)
        return requests

    def check(
        self,
        prompt: str | Sequence[int] | Prompt,
        params: SamplingParams | None,
        policy: Policy,
        priority: int = 0,
        timeout: float | None = None,
        settle_at_once: bool = True,
    ) -> CheckedRequest:
        """A request that :meth:`queue` takes. SteerError if it can never run."""
        params = self.params(params)
        check_timing(priority, timeout)
        with about("prompt"):
            asked = self.prompt_ids(prompt)
        whole = complete(policy)
        drafts = whole.speculation or self._speculation
        if isinstance(asked, Prompt):
            check_relayed(params, whole, settle_at_once)
            check_drafts(drafts)
        if whole.speculation and whole.speculation.verifies and whole.audit:
            raise SteerError(
                f"policy {whole.name}: the large model reads the text for its audit, so it cannot "
                "verify it as well; use judge, audit or verify alone",
                "policy",
            )
        check_scored(params, whole, drafts)
        self.check_ids(params.stop_token_ids, "stop_token_ids")
        self.check_ids(params.logit_bias, "logit_bias")
        stops = find_stops(params, *self._vocabularies)
        request = CheckedRequest(asked, params, whole, stops, priority, timeout, settle_at_once)
        marker = think_marker(params, whole)
        for tokenizer in self._vocabularies[0]:
            self._think_end(marker, tokenizer)
        self._check_lengths(request)
        return request

    def params(self, params: SamplingParams | None) -> SamplingParams:
        """The parameters, or the engine's own. SteerError on anything else."""
        if params is None:
            return self._defaults
        if not isinstance(params, SamplingParams):
            raise SteerError(
                f"params must be SamplingParams(...) or None, got a {type(params).__name__}",
                "params",
            )
        return params

    def has_room(self, count: int) -> bool:
        """Whether ``count`` requests can wait; more than ever can are left to the queue's error."""
        limit = self._limits.max_waiting
        return not limit or self._scheduler.waiting + min(count, limit) <= limit

    def _check_lengths(self, request: CheckedRequest) -> None:
        """What the core would refuse, before other requests run for nothing."""
        params, limits, prompt = request.params, self._limits, len(request.ids)
        window, total = request.policy.window, prompt + params.max_tokens
        if window.tokens > params.max_tokens:
            raise SteerError(
                f"a probe of {window.tokens} tokens is longer than max_tokens "
                f"({params.max_tokens})",
                "max_tokens",
            )
        if limits.max_waiting and params.n > limits.max_waiting:
            raise SteerError(
                f"{params.n} samples can never be queued at once: the queue holds "
                f"{limits.max_waiting}",
                "n",
            )
        context, longest = limits.max_context, self._scheduler.longest
        counts = f"prompt of {prompt} tokens and max_tokens {params.max_tokens}"
        field = "prompt" if prompt >= min(context, longest) else "max_tokens"
        if total > context:
            said = f"{counts} exceed the context of {context} tokens"
            raise ContextLengthError(said, field)
        if total > longest:
            said = f"{counts} need KV for {total} tokens, the arena holds {longest}"
            raise ContextLengthError(said, field)

    def _retokenizer(self, request: CheckedRequest, prompt: Prompt) -> Retokenizer:
        assert self._bridge is not None
        marker = think_marker(request.params, request.policy)
        think_end = self._think_end(marker, self._bridge.tokenizers[1])
        ends = request.stops.relayed
        return Retokenizer(self._scheduler, self._bridge, prompt, ends, think_end)

    def _add(self, request: CheckedRequest) -> int:
        params, policy, ids = request.params, request.policy, request.ids
        window, marker = policy.window, think_marker(params, policy)
        audit = policy.audit or Audit.parse(params.audit)
        drafts = policy.speculation or self._speculation
        revised = audit.rolls_back or isinstance(policy, Together)
        scored = scored_model(params, policy)
        try:
            return self._scheduler.add(
                ids,
                max_tokens=params.max_tokens,
                stop_ids=list(request.stops.ids),
                reader=ROLES.index(policy.reader) if policy.reads else _NOBODY,
                priority=request.priority,
                settle_at_once=request.settle_at_once and not revised,
                stop_strings=[s.encode() for s in params.stop],
                min_tokens=params.min_tokens,
                max_step_tokens=params.max_step_tokens,
                trial_tokens=window.trial_tokens if policy.reads else 0,
                think_end=self._think_end(marker, self._tokenizer),
                think_closed=bool(marker) and closes_thinking(ids, marker, self._tokenizer),
                max_think_tokens=params.max_think_tokens,
                max_repeats=params.max_repeats,
                ask_at_end=policy.reads and policy.reader == ROLES[LARGE],
                relay=isinstance(request.prompt, Prompt),
                audited=audit.on,
                scored=_NOBODY if scored is None else scored,
                draft_tokens=drafts.tokens,
                draft_source=drafts.source,
                verified=drafts.verifies,
                finishes_step=drafts.verifies and drafts.finishes_step,
                samples=params.n,
            )
        except OverflowError as error:
            raise QueueFullError(str(error)) from None
        except ValueError as error:
            raise SteerError(str(error)) from None

    @staticmethod
    def _think_end(marker: str, tokenizer: Tokenizer) -> list[int]:
        try:
            return tokenizer.encode(marker) if marker else []
        except SteerError as error:
            error.field = "think_end"
            raise error.within(f"think_end {marker!r}") from None

    def prompt_ids(self, prompt: str | Sequence[int] | Prompt) -> list[int] | Prompt:
        """Token ids of a prompt, or of each model if their tokens differ. SteerError if invalid."""
        if self._bridge:
            return self._bridge.prompt(prompt)
        if isinstance(prompt, str):
            ids = self._tokenizer.encode(prompt, special=True)
        elif isinstance(prompt, Prompt):
            raise SteerError(
                "a prompt must be text or token ids: both models have the same tokens", "prompt"
            )
        else:
            ids = token_ids(prompt)
            check_range(ids, self._tokenizer.size)
        if not ids:
            raise SteerError("the prompt is empty", "prompt")
        return ids

    def check_ids(self, ids: Iterable[int], field: str) -> None:
        """SteerError for the first of a parameter's ids that is none; ``field``: the parameter."""
        size = self._tokenizer.size
        for wrong in (i for i in ids if not (isinstance(i, int) and 0 <= i < size)):
            raise SteerError(f"{field}: token id {wrong} is not in 0..{size - 1}", field)


def check_timing(priority: int, timeout: float | None) -> None:
    """SteerError on a priority or timeout that is none."""
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if timeout is not None and not (number and timeout > 0):
        raise SteerError(
            f"timeout must be more than 0 seconds, as a number; got {timeout!r}", "timeout"
        )
    whole = isinstance(priority, int) and not isinstance(priority, bool)
    if not whole or abs(priority) >= 2**31:
        raise SteerError(
            f"priority must be a whole number below 2**31, got {priority!r}", "priority"
        )


def think_marker(params: SamplingParams, policy: PolicyBase) -> str:
    """The text that ends the thinking part; empty where nothing depends on it."""
    needed = params.max_think_tokens or policy.needs_think_end
    return params.think_end or (THINK_END if needed else "")
