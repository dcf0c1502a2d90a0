"""What the model remembers of a sequence from one call to the next, and nothing more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine._core import Sequence

from .kinds import NOBODY, NONE, RUNNING, SMALL, WAITING
from .model_text import Request, Verdict, must_stop_thinking, thinks

if TYPE_CHECKING:
    from .model_scheduler import SchedulerModel, Span

FORCED = -1  # the model of a token that none drew


class SequenceState:
    """A sequence as it was added; model_sequence says what becomes of it."""

    def __init__(
        self, core: SchedulerModel, id: int, group: int, samples: int, request: Request
    ) -> None:
        self.core, self.request = core, request
        self.id, self.group, self.samples = id, group, samples
        self.prompt = len(request.prompt)
        self.tokens = list(request.prompt)
        self.drawn: list[int] = []  # by token past the prompt: the lane, or FORCED
        self.steps: list[tuple[int, int]] = []
        self.settled = self.prompt
        self.phase, self.finish, self.cut_bytes = WAITING, NONE, 0
        self.active, self.awaits_route, self.reading = SMALL, False, False
        self.suspended = False  # stopped, as others needed its KV
        self.candidate, self.attempt = -1, 0
        self.trial_from, self.trial_end, self.rest_from = -1, Verdict(), -1
        # KV of each model: rows that are there, that ever were, that are in flight, the blocks
        # (None where only the core knows), the leading blocks that the cache knows.
        self.computed, self.highest, self.flying = [0, 0], [0, 0], [0, 0]
        self.blocks: list[list[int | None]] = [[], []]
        self.known = [0, 0]
        # What is planned after the rows in flight: won, or lost, when these have retired.
        self.bets: list[Span | None] = [None, None]
        # What waits for the batch in flight; others may take KV then as well.
        self.end_pending, self.cut_pending = NONE, -1
        self.gives_up, self.may_lose = [False, False], [False, False]
        self.rows = [[[0, 0] for _ in range(5)] for _ in range(2)]
        self.entries, self.cached = [[0, 0], [0, 0]], [0, 0]
        self.last_sampler, self.decision_wait = NOBODY, 0

    # -- what is so

    @property
    def order(self) -> tuple[int, int]:
        return self.request.priority, self.id

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def written(self) -> list[int]:
        return self.tokens[self.prompt :]

    @property
    def busy(self) -> bool:
        return any(self.flying)

    @property
    def pending(self) -> bool:
        return self.end_pending != NONE or self.cut_pending >= 0

    def done_with(self, model: int) -> bool:
        """It will not go to that model any more, as far as is decided."""
        return self.rest_from >= 0 and self.active != model

    def runnable(self, lane: int) -> bool:
        free = not (self.awaits_route or self.suspended or self.pending or self.flying[lane])
        return self.phase == RUNNING and self.active == lane and free

    def follows(self, lane: int) -> int:
        """Rows that may be planned after those in flight; none if the text is known to end with
        the token in flight, or to go on with others than the model's."""
        if not self.flying[lane] or self.active != lane or self.awaits_route or self.pending:
            return 0
        if self.phase != RUNNING or self.suspended or self.bets[lane] or self.gives_up[lane]:
            return 0
        left = self.length - self.computed[lane] - self.flying[lane]
        if left:
            return left
        written = [*self.written, NOBODY]
        ends = len(written) >= self.request.max_tokens
        return int(
            self.request.ahead and not ends and not must_stop_thinking(self.request, written)
        )

    def differences(self, seen: Sequence) -> dict[str, tuple[object, object]]:
        """Where the core disagrees: what it has, and what it should have."""
        forced = [self.prompt + i for i, lane in enumerate(self.drawn) if lane == FORCED]
        thinking = thinks(self.request, self.written)
        pairs = {
            "tokens": (seen.tokens.tolist(), self.tokens),
            "steps": (seen.steps, self.steps),
            "settled": (seen.settled, self.settled),
            "phase": (seen.phase, self.phase),
            "finish": (seen.finish, self.finish),
            "cut_bytes": (seen.cut_bytes, self.cut_bytes),
            "active": (seen.active, self.active),
            "awaits_route": (seen.awaits_route, self.awaits_route),
            "reading": (seen.reading, self.reading),
            "suspended": (seen.suspended, self.suspended),
            "candidate": (seen.candidate, self.candidate),
            "attempt": (seen.attempt, self.attempt),
            "trial_from": (seen.trial_from, self.trial_from),
            "thinking": (seen.thinking, thinking),
            "forced": (seen.forced, forced),
            "computed": (seen.computed, self.computed),
            "in_flight": (seen.in_flight, self.flying),
            "ahead": (seen.ahead, [bet.rows if bet else 0 for bet in self.bets]),
            "rows": (seen.rows.tolist(), self.rows),
            "entries": (seen.entries.tolist(), self.entries),
            "cached": (seen.cached, self.cached),
            "decision_wait": (seen.decision_wait, self.decision_wait),
            "sample": (seen.sample, self.id - self.group),
            "lengths": ((seen.length, seen.prompt_length), (self.length, self.prompt)),
        }
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
