"""What the model remembers of a sequence from one call to the next, and nothing more."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

from engine._core import MOST_DRAFTS, RowKind, Sequence

from .kinds import LARGE, NOBODY, NONE, RUNNING, SMALL, WAITING
from .model_text import Request, Verdict, must_stop_thinking, thinks

if TYPE_CHECKING:
    from .model_scheduler import SchedulerModel, Span

MOST_BEHIND = 64  # rows that the small model may lack and still guess
_GUESSED = (
    *("passes", "tokens", "rounds", "drafted", "looked_up", "reused", "compared", "accepted"),
)
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
        # Guesses after the text, how many are wanted (0: no round), whether more are written, and
        # whether there is an end of guessing.
        self.draft: list[int] = []
        self.wanted, self.open, self.off = 0, False, False
        self.has_rows = False  # the small model has drawn the guesses
        self.replaced: list[int] = []  # places of verified steps where no guess stood
        self.leftover: tuple[int, list[int]] = -1, []  # what it had written here, and where
        self.guessed = dict.fromkeys(_GUESSED, 0)
        self.accepted_at = [0] * MOST_DRAFTS
        self.rows = [[[0, 0] for _ in RowKind] for _ in range(2)]
        self.entries, self.cached = [[0, 0], [0, 0]], [0, 0]
        self.last_sampler, self.decision_wait = NOBODY, 0

    def keep(self, model: int, rows: int) -> None:
        raise NotImplementedError

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
        return self.rest_from >= 0 and self.active != model and not self.is_verified

    @property
    def is_verified(self) -> bool:
        """Does the small model write what the large one verifies?"""
        return self.request.verified and (self.open or self.active == LARGE)

    @property
    def finishes(self) -> bool:
        """Does the large model write on to the step's end?"""
        wanted = self.request.finishes_step and self.replaced
        return bool(wanted) and self.replaced[-1] >= self.steps[-1][0]

    @property
    def with_draft(self) -> list[int]:
        """The text and the guesses after it."""
        return self.tokens + self.draft

    @property
    def reach(self) -> int:
        return self.length + len(self.draft)

    def guesses_from(self, source: str) -> bool:
        return self.request.draft_tokens > 0 and self.request.draft_source in (source, "both")

    @property
    def has_guesser(self) -> bool:
        return self.guesses_from("small") and not self.off

    @property
    def speculates(self) -> bool:
        return self.guesses_from("lookup") or self.has_guesser

    def drafts(self, lane: int) -> bool:
        """Does the lane write guesses?"""
        here = self.phase == RUNNING and not self.suspended and not self.pending
        return self.open and lane == SMALL and here

    def drafts_aside(self, lane: int) -> bool:
        """The same, and the text goes on without them if need be."""
        return self.drafts(lane) and self.active != lane

    def text_end(self, lane: int) -> int:
        """Rows that may be computed to write on: those of guesses if it writes these; the large
        model's last one waits for them."""
        return self.reach if lane == SMALL else self.length - self.open

    def verifying(self, lane: int) -> int:
        """Guesses after which the large model draws: not the last one, if every token is guessed
        first."""
        rows = len(self.draft) - self.request.verified
        return max(0, rows) if lane == LARGE and not self.open else 0

    def runnable(self, lane: int) -> bool:
        free = not (self.awaits_route or self.suspended or self.pending or self.flying[lane])
        if self.phase != RUNNING or not free:
            return False
        return (
            self.text_end(lane) > self.computed[lane] if self.active == lane else self.drafts(lane)
        )

    @property
    def draws_on(self) -> bool:
        """Is the large model's turn, with no question before its next draw?"""
        asked = self.awaits_route or self.reading or self.trial_from >= 0
        return self.phase == RUNNING and self.active == LARGE and not asked and not self.pending

    def follows(self, lane: int) -> int:
        """Rows that may be planned after those in flight; none if the text is known to end with
        the token in flight, or to go on with others than the model's."""
        drafts = self.drafts(lane)
        if not self.flying[lane] or self.awaits_route or self.pending:
            return 0
        if self.active != lane and not drafts:
            return 0
        if lane == LARGE and (self.speculates or self.wanted):
            return 0  # several draws, or a round: none knows what follows
        if self.phase != RUNNING or self.suspended or self.bets[lane] or self.gives_up[lane]:
            return 0
        left = self.reach - self.computed[lane] - self.flying[lane]
        if left:
            return left
        if drafts:
            return int(self.request.ahead and len(self.draft) + 1 < self.wanted)
        written = [*self.written, NOBODY]
        ends = len(written) >= self.request.max_tokens
        return int(
            self.request.ahead and not ends and not must_stop_thinking(self.request, written)
        )

    def differences(self, seen: Sequence) -> dict[str, tuple[object, object]]:
        """Where the core disagrees: what it has, and what it should have."""
        theirs, ours = _facts(seen), self.facts()
        if theirs == ours:
            return {}
        pairs = zip(_FACTS, theirs, ours, strict=True)
        return {name: (is_, should) for name, is_, should in pairs if is_ != should}

    def facts(self) -> tuple[object, ...]:
        """The values of ``_FACTS`` that the core should have."""
        return (
            *(self.tokens, self.steps, self.settled, self.phase, self.finish, self.cut_bytes),
            *(self.active, self.awaits_route, self.reading, self.suspended, self.candidate),
            *(self.attempt, self.trial_from, thinks(self.request, self.written)),
            [self.prompt + i for i, lane in enumerate(self.drawn) if lane == FORCED],
            *(self.computed, self.flying, [bet.rows if bet else 0 for bet in self.bets]),
            *(self.rows, self.entries, self.cached, self.decision_wait, self.id - self.group),
            *(self.length, self.prompt, self.draft, self.open, self.replaced),
            self.guessed | {"accepted_at": self.accepted_at},
        )


_FACTS = (
    *("tokens", "steps", "settled", "phase", "finish", "cut_bytes"),
    *("active", "awaits_route", "reading", "suspended", "candidate"),
    *("attempt", "trial_from", "thinking", "forced", "computed", "in_flight", "ahead"),
    *("rows", "entries", "cached", "decision_wait", "sample", "length", "prompt_length"),
    *("draft", "drafting", "replaced", "speculation"),
)
_read = attrgetter(*_FACTS)
_ARRAYS = [_FACTS.index(name) for name in ("tokens", "rows", "entries")]


def _facts(seen: Sequence) -> tuple[object, ...]:
    """The values of ``_FACTS`` that the core has."""
    values = [*_read(seen)]
    for i in _ARRAYS:
        values[i] = values[i].tolist()
    return tuple(values)
