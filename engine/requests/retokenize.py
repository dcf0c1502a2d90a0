"""Pairs whose tokenizers differ: text crosses between the models at step boundaries, as bytes.

A request is a sequence of the core in the small model's tokens, and a *shadow* in the large one's
that writes its steps (csrc/relay.cpp). Here what crosses is encoded, and what cannot is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import index

import numpy as np

from engine import _core
from engine.accounting.ledger import Usage
from engine.errors import SteerError
from engine.params import SamplingParams
from engine.request import FINISH_REASONS, Prompt
from engine.routing.audit import Audit
from engine.routing.policies import Policy, reader_of
from engine.text.tokenizer import Tokenizer

_SMALL, _LARGE = range(2)
_NONE, _STOP, _LENGTH, _REPETITION = map(
    FINISH_REASONS.index, ("none", "stop", "length", "repetition")
)


@dataclass(frozen=True)
class TokenizerBridge:
    """What both models, small first, need to hand text over. ``eos_ids`` end a text."""

    tokenizers: tuple[Tokenizer, Tokenizer]
    eos_ids: tuple[tuple[int, ...], tuple[int, ...]]

    def prompt(self, prompt: str | Sequence[int] | Prompt) -> Prompt:
        """Text as each model writes it. SteerError on ids of one model only, and of no token."""
        if isinstance(prompt, str):
            small, large = (tuple(t.encode(prompt, special=True)) for t in self.tokenizers)
            found = Prompt(small, large)
        elif isinstance(prompt, Prompt):
            found = Prompt(*(tuple(map(index, ids)) for ids in (prompt.small, prompt.large)))
        else:
            raise SteerError(
                "the models have different tokens: a prompt must be text or a Prompt, got "
                f"{prompt!r}"
            )
        for ids, tokenizer in zip((found.small, found.large), self.tokenizers, strict=True):
            if not ids:
                raise SteerError("the prompt is empty")
            for wrong in (i for i in ids if not 0 <= i < tokenizer.size):
                raise SteerError(f"token id {wrong} is not in 0..{tokenizer.size - 1}")
        return found


def check_relayed(params: SamplingParams, policy: Policy, settle_at_once: bool) -> None:
    """SteerError on what a request cannot have while the text crosses between two vocabularies."""
    audit: Audit = getattr(policy, "audit", None) or Audit.parse(params.audit)
    for wrong, what in (
        (audit.on, "an audit"),
        (policy.reads and reader_of(policy) == "large", "a policy that the large model reads for"),
        (params.n > 1, "n above 1"),
        (params.logit_bias, "logit_bias"),
        (params.stop_token_ids, "stop_token_ids"),
        (params.min_tokens, "min_tokens"),
        (not settle_at_once, "settle_at_once=False"),
    ):
        if wrong:
            raise SteerError(
                f"{what} cannot go with retokenize: the models of this pair have different tokens"
            )


class Retokenizer:
    """One request between two vocabularies. ``prompt``, ``stop_ids`` are the large model's."""

    def __init__(
        self, scheduler: _core.Scheduler, vocabularies: TokenizerBridge, prompt: Prompt,
        stop_ids: tuple[tuple[int, ...], tuple[int, ...]], think_end: Sequence[int],
    ) -> None:  # fmt: skip
        """
        Args:
            stop_ids: that end the text, of each model.
            think_end: ids of the large model that end the thinking part.
        """
        self.prompt = prompt.large
        self.stop_ids = stop_ids[_LARGE]
        self.opened = False  # the shadow was made
        self.open = False  # and has not ended
        self._scheduler = scheduler
        self._small, self._large = vocabularies.tokenizers
        self._ends = stop_ids[_SMALL]
        self._think_end = list(think_end)
        self._crossed = len(prompt.small)  # so much of the text the shadow has
        self._ready: list[int] = []  # what is to cross next
        self._closed = ""  # why the large model writes no more
        self._usage = Usage()  # of the shadow, once it has ended, and of crossings

    def _shadow(self, request: int) -> _core.Sequence | None:
        return self._scheduler.sequence(-request) if self.open else None

    def behind(self, request: int, position: int) -> tuple[int, int]:
        """How far the large model has read, and how many tokens it would have to read now.

        What has not crossed yet counts as so many tokens as the small model has for it.
        """
        shadow, waiting = self._shadow(request), position - self._crossed
        if shadow is None:
            return 0, len(self.prompt) + waiting
        return shadow.computed[_LARGE], shadow.length - shadow.computed[_LARGE] + waiting

    def usage(self, request: int) -> Usage:
        """What the large model has cost so far, and what has crossed."""
        shadow = self._shadow(request)
        return self._usage + Usage.of(shadow) if shadow else self._usage

    def obstacle(self, request: int, position: int) -> str | None:
        """Why the large model cannot go on behind ``position``; None if :meth:`cross` can."""
        if self._closed:
            return self._closed
        tokens = self._scheduler.sequence(request).tokens[self._crossed : position]
        ids = self._large.write(self._small.bytes_of(tokens.tolist()))
        if ids is None:
            return "the large model's tokens cannot write this text"
        shadow, limit = self._shadow(request), self._scheduler.longest
        if (shadow.length if shadow else len(self.prompt)) + len(ids) >= limit:
            return _full(limit)
        self._ready = ids
        return None

    def cross(self, request: int, position: int, unread: bool) -> None:
        """The large model writes the next step. To be called where there was no obstacle."""
        if not self.opened:
            self._scheduler.add_shadow(
                request, prompt=list(self.prompt), stop_ids=list(self.stop_ids),
                think_end=self._think_end,
            )  # fmt: skip
            self.opened = self.open = True
        self._scheduler.cross(request, self._ready, unread)
        self._count(_LARGE, len(self._ready))
        self._crossed, self._ready = position, []

    def cross_back(self, request: int) -> None:
        """Take a step, or the end, over from the shadow."""
        shadow = self._scheduler.sequence(-request)
        step, end = shadow.tokens[shadow.steps[-1][0] :].tolist(), shadow.finish
        # What ends a text has another id here; a stop string is found again.
        ended = (
            end == _STOP
            and step[-1] in self.stop_ids
            and shadow.cut_bytes == len(self._large.bytes[step[-1]])
        )
        ids = self._small.write(self._large.bytes_of(step[:-1] if ended else step))
        if end == _LENGTH:
            self._closed, end = _full(self._scheduler.longest), _NONE
        if ids is None:
            self._closed = "the small model's tokens cannot write what the large one wrote"
            ids, ended, end = [], False, _NONE if end in (_STOP, _REPETITION) else end
        self._count(_SMALL, len(ids))
        self._crossed = self._scheduler.sequence(request).length + len(ids)
        self._scheduler.cross_back(request, ids + list(self._ends[:1]) * ended, end)

    def close(self, request: int) -> None:
        """The shadow has ended: keep what it has cost."""
        shadow = self._shadow(request)
        if shadow:
            self._usage += Usage.of(shadow)
            self._scheduler.forget(-request)
            self.open = False

    def _count(self, model: int, tokens: int) -> None:
        counts = np.zeros(2, np.int64)
        counts[model] = tokens
        self._usage += replace(Usage(), retokenised=counts, crossings=int(tokens > 0))


def _full(limit: int) -> str:
    return f"the large model's context of {limit} tokens is full"
