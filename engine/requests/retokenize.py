"""Pairs whose tokenizers differ: text crosses between the models at step boundaries, as bytes.

A request is a sequence of the core in the small model's tokens, and a *shadow* sequence in the
large model's tokens, which writes the large model's steps (csrc/schedule/relay.cpp). This module
encodes the text that crosses, and finds text that cannot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine import _core
from engine._core import LARGE, SMALL, Finish
from engine.accounting.ledger import Usage
from engine.errors import SteerError, about
from engine.params import SamplingParams
from engine.request import Prompt
from engine.requests.prompt_ids import check_range, token_ids
from engine.routing.audit import Audit
from engine.routing.policy import PolicyBase
from engine.routing.speculation import Speculation
from engine.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenizerBridge:
    """Tokenizers of both models, small first, and the ids that end a text of each."""

    tokenizers: tuple[Tokenizer, Tokenizer]
    eos_ids: tuple[tuple[int, ...], tuple[int, ...]]

    def prompt(self, prompt: str | Sequence[int] | Prompt) -> Prompt:
        """A prompt's ids for each model. SteerError on ids of one model only, and on wrong ids."""
        if isinstance(prompt, str):
            small, large = (tuple(t.encode(prompt, special=True)) for t in self.tokenizers)
        elif isinstance(prompt, Prompt):
            small, large = (tuple(token_ids(ids)) for ids in (prompt.small, prompt.large))
        else:
            raise SteerError(
                "the models have different tokens: a prompt must be text or a Prompt, got a "
                f"{type(prompt).__name__}",
                "prompt",
            )
        for ids, tokenizer in zip((small, large), self.tokenizers, strict=True):
            if not ids:
                raise SteerError("the prompt is empty", "prompt")
            if not isinstance(prompt, str):  # a text's ids are the tokenizer's own
                check_range(ids, tokenizer.size)
        return Prompt(small, large)


def check_relayed(params: SamplingParams, policy: PolicyBase, settle_at_once: bool) -> None:
    """SteerError on parameters that do not work while text crosses between two vocabularies."""
    audit = policy.audit or Audit.parse(params.audit)
    for wrong, what, field in (
        (audit.on, "an audit", "policy" if policy.audit else "audit"),
        (
            policy.reads and policy.reader == "large",
            "a policy that the large model reads for",
            "policy",
        ),
        (policy.needs_large_signals, "a policy that needs the large model's signals", "policy"),
        (params.n > 1, "n above 1", "n"),
        (params.logit_bias, "logit_bias", "logit_bias"),
        (params.stop_token_ids, "stop_token_ids", "stop_token_ids"),
        (params.min_tokens, "min_tokens", "min_tokens"),
        (params.prompt_logprobs is not None, "prompt_logprobs", "prompt_logprobs"),
        (not settle_at_once, "settle_at_once=False", "settle_at_once"),
    ):
        if wrong:
            raise SteerError(
                f"{what} cannot go with retokenize: the models of this pair have different tokens",
                field,
            )


@about("policy")
def check_drafts(speculation: Speculation) -> None:
    """SteerError if the small model would guess tokens of a model that has others."""
    if speculation.verifies:
        raise SteerError(
            "verify needs models with the same tokens: the large model cannot verify the small "
            "one's; the models of this pair have different ones"
        )
    if speculation.by_small_model:
        raise SteerError(
            "the small model cannot guess the large one's tokens: the models of this pair have "
            f'different tokens; use the source "lookup" (speculate:{speculation.tokens}:lookup, or '
            'draft_source="lookup" of EngineConfig), or guess none'
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
        self._scheduler = scheduler
        self._small, self._large = vocabularies.tokenizers
        self._ends = ends
        self._think_end = list(think_end)
        self._crossed = len(prompt.small)  # tokens of the small model that the shadow has
        self._ready: list[int] = []  # ids of the large model that cross next
        self._closed = ""  # why the large model cannot write any more; empty: it can
        self._usage = Usage()  # of crossings, and of the shadow once it has ended

    def _shadow(self, request: int) -> _core.SequenceView | None:
        shadow = self._scheduler.shadow_of(request)
        return None if shadow is None else self._scheduler.view(shadow)

    def lag(self, request: int, position: int) -> tuple[int, int]:
        """Tokens that the large model has read, and those it must still read before ``position``.

        Text that has not crossed yet is counted in the small model's tokens.
        """
        shadow, waiting = self._shadow(request), position - self._crossed
        if shadow is None:
            return 0, len(self.prompt) + waiting
        return shadow.computed[LARGE], shadow.length - shadow.computed[LARGE] + waiting

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

    def open_shadow(self, request: int) -> int:
        """The id of the request's shadow, which is added where there is none."""
        shadow = self._scheduler.shadow_of(request)
        if shadow is not None:
            return shadow
        return self._scheduler.add_shadow(
            request,
            prompt=list(self.prompt),
            stop_ids=list(self.stop_ids),
            think_end=self._think_end,
        )

    def cross(self, request: int, position: int, unread: bool) -> None:
        """Hand the next step to the large model; :meth:`obstacle` must have returned None."""
        self._scheduler.cross(request, self._ready, unread)
        self._count(LARGE, len(self._ready))
        self._crossed, self._ready = position, []

    def cross_back(self, request: int) -> None:
        """Take over a step, or the end of the text, from the shadow."""
        shadow = self._shadow(request)
        assert shadow is not None
        step = self._scheduler.tokens_since(shadow.id, shadow.step_start).tolist()
        end = shadow.finish
        # The small model has its own id for the end of a text; the core finds stop strings again.
        ended = (
            end == Finish.stop
            and step[-1] in self.stop_ids
            and shadow.cut_bytes == len(self._large.bytes[step[-1]])
        )
        stop = self._ends[step[-1]] if ended else None
        ids = self._small.write(self._large.bytes_of(step[:-1] if ended else step))
        if end == Finish.length:
            self._closed, end = _full(self._scheduler.longest), Finish.none
        if ids is None:
            self._closed = "the small model's tokens cannot write what the large one wrote"
            ids, stop = [], None
            end = Finish.none if end in (Finish.stop, Finish.repetition) else end
        self._count(SMALL, len(ids))
        self._crossed = self._scheduler.view(request).length + len(ids)
        self._scheduler.cross_back(request, ids if stop is None else [*ids, stop], end)

    def close(self, request: int) -> None:
        """Keep the counts of the shadow, which has ended."""
        shadow = self._shadow(request)
        if shadow:
            self._usage += Usage.of(shadow)
            self._scheduler.forget(shadow.id)

    def _count(self, model: int, tokens: int) -> None:
        counts = np.zeros(2, np.int64)
        counts[model] = tokens
        self._usage += replace(Usage(), retokenised=counts, crossings=int(tokens > 0))


def _full(limit: int) -> str:
    return f"the large model's context of {limit} tokens is full"
