"""Rows of a plan that are scored, for an audit or a prompt's log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine import _core
from engine._core import LARGE
from engine.execution.sampled_rows import SamplingSpec
from engine.request import TokenLogprobs
from kernels import ops

Int32 = npt.NDArray[np.int32]
_Place = tuple[int, int]


@dataclass(frozen=True)
class ScoredRows:
    """Rows whose next token is already written: first those of audits, then those of prompts.

    rows, targets: int32 [rows], rows of the plan and the tokens that follow them.
    audits, prompts: (sequence of the plan, position of the token) for each row.
    top: likeliest tokens that are wanted for the rows of prompts.
    """

    rows: Int32
    targets: Int32
    audits: list[_Place]
    prompts: list[_Place]
    top: int

    def by_sequence(self, logprobs: npt.NDArray[np.float64]) -> dict[int, list[tuple[int, float]]]:
        """(position, log-probability) of the audits' targets by sequence of the plan.

        logprobs: fp64 [audits].
        """
        scores: dict[int, list[tuple[int, float]]] = {}
        for (sequence, position), value in zip(self.audits, logprobs.tolist(), strict=True):
            scores.setdefault(sequence, []).append((position, value))
        return scores

    def prompts_by_sequence(
        self, logprobs: ops.LogProbs
    ) -> dict[int, list[tuple[int, TokenLogprobs]]]:
        """(position, log-probabilities) of the prompts' tokens by sequence of the plan.

        logprobs: of the rows of prompts, on the host. Rows that were unusable give None.
        """
        entries: dict[int, list[tuple[int, TokenLogprobs]]] = {}
        parts = zip(self.prompts, *(part.tolist() for part in logprobs), strict=True)
        for (sequence, position), own, top, ids in parts:
            usable = own == own  # not NaN
            entry = TokenLogprobs(own, tuple(zip(ids, top, strict=True)))
            found = entries.setdefault(sequence, [])
            found.append((position, entry if usable else TokenLogprobs(None)))
        return entries


@dataclass(frozen=True)
class _Span:
    """Rows of one sequence of a plan that are not sampled from.

    index: of the sequence in the plan.
    shift: from the position of a token to the row that predicts it.
    first, last: positions of the tokens that follow the rows, [first, last).
    """

    index: int
    request: int
    shift: int
    first: int
    last: int


@dataclass(frozen=True)
class _Found:
    """Rows of one kind, the tokens that follow them, and their places as in ``ScoredRows``."""

    rows: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    places: list[_Place] = field(default_factory=list)

    def add(self, span: _Span, positions: Sequence[int], core: _core.Scheduler) -> None:
        """Add the rows before these positions, which are in order."""
        if not positions:
            return
        first = positions[0]
        known = core.tokens_since(span.request, first, positions[-1] + 1 - first).tolist()
        self.rows.extend(position + span.shift for position in positions)
        self.targets.extend(known[position - first] for position in positions)
        self.places.extend((span.index, position) for position in positions)


def scored_rows(
    plan: _core.Plan, requests: Mapping[int, SamplingSpec], core: _core.Scheduler, model: int
) -> ScoredRows | None:
    """The rows to score, of spans whose requests want it of ``model``; None if there are none.

    A row predicts the next token. The rows that are sampled from do not count: their next tokens
    are not drawn yet. An audit scores tokens of the answer, by the large model.
    """
    audits, prompts, top = _Found(), _Found(), 0
    for span in _spans(plan):
        draw = requests[span.request]
        if draw.audited and model == LARGE:
            audits.add(span, range(max(span.first, draw.prompt_tokens), span.last), core)
        log = draw.prompt_log
        if log is not None and log.model == model:
            read = range(span.first, min(span.last, draw.prompt_tokens))
            prompts.add(span, [position for position in read if log.lacks(position)], core)
            top = max(top, log.top)
    if not audits.rows and not prompts.rows:
        return None
    rows = np.array(audits.rows + prompts.rows, np.int32)
    targets = np.array(audits.targets + prompts.targets, np.int32)
    return ScoredRows(rows, targets, audits.places, prompts.places, top)


def _spans(plan: _core.Plan) -> Iterator[_Span]:
    n = plan.sequences
    starts, samples = plan.starts[: n + 1], plan.samples[:n]
    for i in np.flatnonzero(np.diff(starts) > samples).tolist():  # none in a tick of decodes
        end, last_row = int(plan.contexts[i]), int(starts[i + 1])
        first = end - (last_row - int(starts[i])) + 1
        yield _Span(i, int(plan.ids[i]), last_row - end - 1, first, end + 1 - int(samples[i]))
