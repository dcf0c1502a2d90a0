"""The sampled rows of a tick, and how their requests sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine import _core
from engine.execution.logprobs import PromptLog
from engine.execution.token_history import TokenHistory
from engine.params import SamplingParams

Int32 = npt.NDArray[np.int32]


class SamplingSpec(Protocol):
    """How a request samples, and the keys of its random draws.

    draw_key: 64 bits, of the seed and the prompt.
    sample: number of the answer among those to the same prompt, from 0.
    asks: how many likely tokens' log-probabilities it needs; None: no log-probabilities.
    history: its tokens, followed for penalties.
    audited: whether the large model scores the small model's steps.
    prompt_log: log-probabilities of the prompt's tokens, if they are wanted.
    mark: which guesses of the small model stand, see ``engine.routing.speculation``.
    """

    params: SamplingParams
    draw_key: int
    prompt_tokens: int
    stop_ids: tuple[int, ...]
    sample: int
    asks: int | None
    history: TokenHistory
    prompt_log: PromptLog | None
    mark: float

    @property
    def audited(self) -> bool: ...


@dataclass(frozen=True)
class DrawnRows:
    """The rows of a plan that are sampled from, in order: the last ones of its sequences.

    sequences: intp [rows], their sequences in the plan.
    rows: intp [rows], their rows in the plan.
    contexts: int32 [rows], tokens that each has seen.
    places: intp [rows], of their tokens among those that the commit takes.
    """

    sequences: npt.NDArray[np.intp]
    rows: npt.NDArray[np.intp]
    contexts: Int32
    places: npt.NDArray[np.intp]

    @classmethod
    def of(cls, plan: _core.Plan) -> DrawnRows:
        """Those of a plan, copied: its buffers may be reused afterwards."""
        samples = plan.samples[: plan.sequences]
        if plan.draws == plan.sequences:  # none has several
            sequences = np.flatnonzero(samples)
            ends = plan.starts[1:][sequences] - 1
            return cls(sequences, ends.astype(np.intp), plan.contexts[sequences], sequences)
        sequences = np.repeat(np.arange(plan.sequences), samples)
        before = np.arange(len(sequences)) - (np.cumsum(samples) - samples)[sequences]
        after = samples[sequences] - 1 - before  # rows of the same sequence
        tokens = np.maximum(samples, 1)
        return cls(
            sequences,
            plan.starts[1:][sequences] - 1 - after,
            (plan.contexts[sequences] - after).astype(np.int32),
            (np.cumsum(tokens) - tokens)[sequences] + before,
        )


@dataclass(frozen=True)
class History:
    """A row's tokens, for penalties.

    unread: its last token is missing, because it is not on the host yet.
    """

    prompt: Int32
    generated: Int32
    unread: bool


def history_of(draw: SamplingSpec, core: _core.Scheduler, request: int, context: int) -> History:
    """The first ``context`` tokens of a sequence, its guesses after the text included; the last of
    them may not be on the host yet."""
    known = draw.history.follow(core, request)
    if len(known) < context:
        guesses = np.array(core.view(request).draft, np.int32)
        known = np.concatenate([known, guesses])
    known = known[:context]
    unread = len(known) < context
    return History(known[: draw.prompt_tokens], known[draw.prompt_tokens :], unread)


def guesses_of(
    draws: Sequence[SamplingSpec],
    ids: npt.NDArray[np.int64],
    contexts: Int32,
    core: _core.Scheduler,
) -> dict[int, int]:
    """By row of the large model: the guess at what it draws, if a mark says whether it stands."""
    found: dict[int, int] = {}
    drafts: dict[int, tuple[int, list[int]]] = {}  # by sequence: length of its text, guesses
    for i, draw in enumerate(draws):
        if draw.mark >= 1:
            continue
        request = int(ids[i])
        if request not in drafts:
            view = core.view(request)
            drafts[request] = view.length, [] if view.finishing_step else view.draft
        length, guesses = drafts[request]
        place = int(contexts[i]) - length
        if 0 <= place < len(guesses):
            found[i] = guesses[place]
    return found


@dataclass(frozen=True)
class SampledRows:
    """The sampled rows of a plan, in the order of their logits; copies of the plan's numbers.

    ids: int64 [rows], ids of their sequences.
    contexts: int32 [rows], tokens that a row has seen: the position of the token that it draws.
    attempts: int32 [rows], truncations of the sequence so far; they key its draws.
    draws: how each row samples.
    guesses: bool [rows], rows of the small model that guess what the large one will draw, with its
        key. A guess is not text: it has no log-probabilities.
    verified: by row of the large model, the small model's guess at what it draws, which may stand.
    """

    ids: npt.NDArray[np.int64]
    contexts: Int32
    attempts: Int32
    draws: list[SamplingSpec]
    guesses: npt.NDArray[np.bool_]
    verified: dict[int, int] = field(default_factory=dict)

    @cached_property
    def asked(self) -> dict[int, int]:
        """By row: how many likely tokens' log-probabilities it needs, if any."""
        counts = ((i, draw.asks) for i, draw in enumerate(self.draws))
        return {i: count for i, count in counts if count is not None and not self.guesses[i]}

    @cached_property
    def edited(self) -> list[int]:
        """Rows with penalties or biases."""
        return [i for i, draw in enumerate(self.draws) if draw.params.edits_logits]

    @cached_property
    def early(self) -> list[int]:
        """Rows whose text must not end yet (``min_tokens``)."""
        return [
            i
            for i, (draw, context) in enumerate(zip(self.draws, self.contexts, strict=True))
            if draw.params.min_tokens and context - draw.prompt_tokens < draw.params.min_tokens
        ]

    @cached_property
    def likeliest(self) -> bool:
        """Whether each row takes the likeliest token of unchanged logits."""
        greedy = all(draw.params.temperature == 0 for draw in self.draws)
        return greedy and not self.edited and not self.early

    @property
    def plain(self) -> bool:
        """Whether no row needs more than that: neither log-probabilities nor a look at a guess."""
        return self.likeliest and not self.asked and not self.verified
