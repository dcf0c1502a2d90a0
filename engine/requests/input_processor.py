"""Turns a prompt, its parameters and a policy into sequences of the core."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from operator import index

from engine import _core
from engine.config import ROLES
from engine.errors import QueueFullError, SteerError
from engine.params import THINK_END, SamplingParams
from engine.request import Prompt
from engine.requests.driver import Driver
from engine.requests.request_state import RequestState
from engine.requests.retokenize import Retokenizer, TokenizerBridge, check_relayed
from engine.routing.audit import Audit
from engine.routing.policies import AfterThinking, Policy, reader_of, window_of
from engine.text.thinking import closes_thinking
from engine.text.tokenizer import Tokenizer

_NOBODY = -1


class InputProcessor:
    """Checks requests and queues them; SteerError on a request that can never run."""

    def __init__(
        self,
        scheduler: _core.Scheduler,
        tokenizer: Tokenizer,
        driver: Driver,
        eos_ids: Sequence[int],
        defaults: SamplingParams,
        vocabularies: TokenizerBridge | None = None,
    ) -> None:
        """
        Args:
            eos_ids: tokens that end a text unless a request ignores them.
            defaults: parameters of requests without any.
            vocabularies: set if the models have different tokens; ``tokenizer`` and ``eos_ids`` are
                then the small model's.
        """
        self._bridge = vocabularies
        self._defaults = defaults
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._driver = driver
        self._eos_ids = tuple(i for i in eos_ids if i < tokenizer.size)

    def queue(
        self,
        prompt: str | Sequence[int] | Prompt,
        params: SamplingParams | None,
        policy: Policy,
        priority: int = 0,
        timeout: float | None = None,
        settle_at_once: bool = True,
    ) -> range:
        """Queue ``params.n`` samples, all or none, and return their ids.

        Raises:
            QueueFullError: if too many requests wait.
            SteerError: if the request can never run.
        """
        params = params or self._defaults
        if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
            raise SteerError(f"timeout must be more than 0 seconds, got {timeout}")
        if not isinstance(priority, int) or abs(priority) >= 2**31:
            raise SteerError(f"priority must be a whole number below 2**31, got {priority!r}")
        asked = self.prompt_ids(prompt)
        if isinstance(asked, Prompt):
            check_relayed(params, policy, settle_at_once)
        ids = list(asked.small) if isinstance(asked, Prompt) else asked
        self.check_ids(params.stop_token_ids, "stop_token_ids: ")
        self.check_ids(params.logit_bias, "logit_bias: ")
        eos = () if params.ignore_eos else self._eos_ids
        stops = tuple(sorted({*params.stop_token_ids, *eos}))
        retokenizer = None
        if isinstance(asked, Prompt):
            retokenizer = self._retokenizer(asked, params, policy, stops)
        crosses = retokenizer is not None
        first = self._add(ids, params, policy, priority, settle_at_once, stops, crosses)
        seed = secrets.randbits(64) if params.seed is None else params.seed
        requests = range(first, first + params.n)
        for sample, request in enumerate(requests):
            live = RequestState(params, seed, policy, len(ids), stops, sample, retokenizer)
            self._driver.start(request, live, timeout)
        return requests

    def _retokenizer(
        self, prompt: Prompt, params: SamplingParams, policy: Policy, stops: tuple[int, ...]
    ) -> Retokenizer:
        assert self._bridge is not None
        tokenizer = self._bridge.tokenizers[1]
        ends = stops, () if params.ignore_eos else self._bridge.eos_ids[1]
        think_end = self._think_end(think_marker(params, policy), tokenizer)
        return Retokenizer(self._scheduler, self._bridge, prompt, ends, think_end)

    def _add(
        self,
        ids: list[int],
        params: SamplingParams,
        policy: Policy,
        priority: int,
        settle_at_once: bool,
        stops: tuple[int, ...],
        relay: bool,
    ) -> int:
        window, marker = window_of(policy), think_marker(params, policy)
        audit: Audit = getattr(policy, "audit", None) or Audit.parse(params.audit)
        if window.tokens > params.max_tokens:
            raise SteerError(
                f"a probe of {window.tokens} tokens is longer than max_tokens ({params.max_tokens})"
            )
        try:
            return self._scheduler.add(
                ids,
                max_tokens=params.max_tokens,
                stop_ids=list(stops),
                reader=ROLES.index(reader_of(policy)) if policy.reads else _NOBODY,
                priority=priority,
                settle_at_once=settle_at_once and not audit.rolls_back,
                stop_strings=[s.encode() for s in params.stop],
                min_tokens=params.min_tokens,
                max_step_tokens=params.max_step_tokens,
                trial_tokens=window.trial_tokens if policy.reads else 0,
                think_end=self._think_end(marker, self._tokenizer),
                think_closed=bool(marker) and closes_thinking(ids, marker, self._tokenizer),
                max_think_tokens=params.max_think_tokens,
                max_repeats=params.max_repeats,
                ask_at_end=policy.reads and reader_of(policy) == ROLES[1],
                relay=relay,
                audited=audit.on,
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
            raise SteerError(f"think_end {marker!r}: {error}") from None

    def prompt_ids(self, prompt: str | Sequence[int] | Prompt) -> list[int] | Prompt:
        """Token ids of a prompt, or of each model if their tokens differ. SteerError if invalid."""
        try:
            if self._bridge:
                return self._bridge.prompt(prompt)
            if isinstance(prompt, str):
                ids = self._tokenizer.encode(prompt, special=True)
            else:
                ids = [*map(index, prompt)]  # type: ignore[arg-type]
        except TypeError:
            raise SteerError(f"a prompt must be text or token ids, got {prompt!r}") from None
        if not ids:
            raise SteerError("the prompt is empty")
        self.check_ids(ids)
        return ids

    def check_ids(self, ids: Iterable[int], where: str = "") -> None:
        """SteerError, beginning with ``where``, for the first id that is no token."""
        size = self._tokenizer.size
        for wrong in (i for i in ids if not (isinstance(i, int) and 0 <= i < size)):
            raise SteerError(f"{where}token id {wrong} is not in 0..{size - 1}")


def think_marker(params: SamplingParams, policy: Policy) -> str:
    """The text that ends the thinking part; empty where nothing depends on it."""
    needed = params.max_think_tokens or isinstance(policy, AfterThinking)
    return params.think_end or (THINK_END if needed else "")
