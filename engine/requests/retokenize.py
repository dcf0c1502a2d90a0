"""Pairs whose tokenizers differ: text crosses between the models at step boundaries, as bytes.

A request is a sequence of the core in the small model's tokens, and a *shadow* sequence in the
large model's tokens, which writes the large model's steps (csrc/relay.cpp). This module encodes the
text that crosses, and finds text that cannot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
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
_SHOWN = 60  # characters of a wrong prompt in an error
_NONE, _STOP, _LENGTH, _REPETITION = map(
    FINISH_REASONS.index, ("none", "stop", "length", "repetition")
)


@dataclass(frozen=True)
class TokenizerBridge:
    """Tokenizers of both models, small first, and the ids that end a text of each."""

    tokenizers: tuple[Tokenizer, Tokenizer]
    eos_ids: tuple[tuple[int, ...], tuple[int, ...]]

    def prompt(self, prompt: str | Sequence[int] | Prompt) -> Prompt:
        """A prompt's ids for each model. SteerError on ids of one model only, and on wrong ids."""
        if isinstance(prompt, str):
            small, large = (tuple(t.encode(prompt, special=True)) for t in self.tokenizers)
            both = Prompt(small, large)
        elif isinstance(prompt, Prompt):
            both = Prompt(*(tuple(token_ids(ids)) for ids in (prompt.small, prompt.large)))
        else:
            raise SteerError(
                "the models have different tokens: a prompt must be text or a Prompt, got a "
                f"{type(prompt).__name__}"
            )
        for ids, tokenizer in zip((both.small, both.large), self.tokenizers, strict=True):
            if not ids:
                raise SteerError("the prompt is empty")
            for wrong in (i for i in ids if not 0 <= i < tokenizer.size):
                raise SteerError(f"token id {wrong} is not in 0..{tokenizer.size - 1}")
        return both


def token_ids(prompt: object) -> list[int]:
    """The ids of a prompt that is no text. SteerError if it is no sequence of whole numbers."""
    try:
        if isinstance(prompt, bytes | bytearray | Mapping | Set) or not isinstance(
            prompt, Iterable
        ):
            raise TypeError
        ids = list(prompt)
        if any(isinstance(i, bool) for i in ids):
            raise TypeError
        return [*map(index, ids)]
    except TypeError:
        shown = repr(prompt)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        raise SteerError(f"a prompt must be text or token ids, got {shown}") from None


def check_relayed(params: SamplingParams, policy: Policy, settle_at_once: bool) -> None:
    """SteerError on parameters that do not work while text crosses between two vocabularies."""
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
    """The crossings of one request. ``prompt`` and ``stop_ids`` are the large model's."""

    def __init__(
        self,
        scheduler: _core.Scheduler,
        vocabularies: TokenizerBridge,
        prompt: Prompt,
        ends: Mapping[int, int | None],
        think_end: Sequence[int],
    ) -> None:
        """
        Args:
            ends: tokens of the large model that end the text, each with the token that the small
                model's text gets in its place; None: no token.
            think_end: ids of the large model that end the thinking part.
        """
        self.prompt = prompt.large
        self.stop_ids = tuple(sorted(ends))
        self.opened = False  # whether the shadow was added
        self.open = False  # whether it was added and has not ended
        self._scheduler = scheduler
        self._small, self._large = vocabularies.tokenizers
        self._ends = ends
        self._think_end = list(think_end)
        self._crossed = len(prompt.small)  # tokens of the small model that the shadow has
        self._ready: list[int] = []  # ids of the large model that cross next
        self._closed = ""  # why the large model cannot write any more; empty: it can
        self._usage = Usage()  # of crossings, and of the shadow once it has ended

    def _shadow(self, request: int) -> _core.SequenceView | None:
        return self._scheduler.view(-request) if self.open else None

    def lag(self, request: int, position: int) -> tuple[int, int]:
        """Tokens that the large model has read, and those it must still read before ``position``.

        Text that has not crossed yet is counted in the small model's tokens.
        """
        shadow, waiting = self._shadow(request), position - self._crossed
        if shadow is None:
            return 0, len(self.prompt) + waiting
        return shadow.computed[_LARGE], shadow.length - shadow.computed[_LARGE] + waiting

    def usage(self, request: int) -> Usage:
        """Counts of the large model and of the crossings so far."""
        shadow = self._shadow(request)
        return self._usage + Usage.of(shadow) if shadow else self._usage

    def obstacle(self, request: int, position: int) -> str | None:
        """Why the text up to ``position`` cannot cross; None if :meth:`cross` may be called."""
        if self._closed:
            return self._closed
        waiting = position - self._crossed
        tokens = self._scheduler.tokens_since(request, self._crossed, waiting)
        ids = self._large.write(self._small.bytes_of(tokens.tolist()))
        if ids is None:
            return "the large model's tokens cannot write this text"
        shadow, limit = self._shadow(request), self._scheduler.longest
        if (shadow.length if shadow else len(self.prompt)) + len(ids) >= limit:
            return _full(limit)
        self._ready = ids
        return None

    def cross(self, request: int, position: int, unread: bool) -> None:
        """Hand the next step to the large model; :meth:`obstacle` must have returned None."""
        if not self.opened:
            self._scheduler.add_shadow(
                request,
                prompt=list(self.prompt),
                stop_ids=list(self.stop_ids),
                think_end=self._think_end,
            )
            self.opened = self.open = True
        self._scheduler.cross(request, self._ready, unread)
        self._count(_LARGE, len(self._ready))
        self._crossed, self._ready = position, []

    def cross_back(self, request: int) -> None:
        """Take over a step, or the end of the text, from the shadow."""
        shadow = self._scheduler.view(-request)
        step, end = (
            self._scheduler.tokens_since(-request, shadow.step_start).tolist(),
            shadow.finish,
        )
        # The small model has its own id for the end of a text; the core finds stop strings again.
        ended = (
            end == _STOP
            and step[-1] in self.stop_ids
            and shadow.cut_bytes == len(self._large.bytes[step[-1]])
        )
        stop = self._ends[step[-1]] if ended else None
        ids = self._small.write(self._large.bytes_of(step[:-1] if ended else step))
        if end == _LENGTH:
            self._closed, end = _full(self._scheduler.longest), _NONE
        if ids is None:
            self._closed = "the small model's tokens cannot write what the large one wrote"
            ids, stop, end = [], None, _NONE if end in (_STOP, _REPETITION) else end
        self._count(_SMALL, len(ids))
        self._crossed = self._scheduler.view(request).length + len(ids)
        self._scheduler.cross_back(request, ids if stop is None else [*ids, stop], end)

    def close(self, request: int) -> None:
        """Keep the counts of the shadow, which has ended."""
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
