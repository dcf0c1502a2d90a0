"""Which rows of a plan an audit scores, and the tokens that they predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine import _core
from engine.execution.sampled_rows import SamplingSpec

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class AuditRows:
    """Rows of the large model whose next token is already written.

    rows, targets: int32 [rows], rows of the plan and the tokens that follow them.
    places: (sequence of the plan, position of the token) for each row.
    """

    rows: Int32
    targets: Int32
    places: list[tuple[int, int]]

    def by_sequence(self, logprobs: npt.NDArray[np.float64]) -> dict[int, list[tuple[int, float]]]:
        """(position, log-probability) of the targets by sequence of the plan.

        logprobs: fp64 [rows].
        """
        scores: dict[int, list[tuple[int, float]]] = {}
        for (sequence, position), value in zip(self.places, logprobs.tolist(), strict=True):
            scores.setdefault(sequence, []).append((position, value))
        return scores


def scored_rows(
    plan: _core.Plan, requests: Mapping[int, SamplingSpec], core: _core.Scheduler
) -> AuditRows | None:
    """The rows to score, of spans whose requests have an audit; None if there are none.

    A row predicts the next token, if that belongs to the answer. The rows that are sampled from do
    not count: their next tokens are not drawn yet.
    """
    rows: list[int] = []
    targets: list[int] = []
    places: list[tuple[int, int]] = []
    for i, request in enumerate(plan.ids[: plan.sequences].tolist()):
        draw = requests[request]
        if not draw.audited:
            continue
        first, last = int(plan.starts[i]), int(plan.starts[i + 1])
        drawn = int(plan.samples[i])
        if last - first == drawn:
            continue
        end = int(plan.contexts[i])
        start = max(end - (last - first) + 1, draw.prompt_tokens)
        count = max(0, end + 1 - drawn - start)
        known = core.tokens_since(request, start, count).tolist()
        for position, token in enumerate(known, start):
            rows.append(last - end + position - 1)
            targets.append(token)
            places.append((i, position))
    if not rows:
        return None
    return AuditRows(np.array(rows, np.int32), np.array(targets, np.int32), places)
