"""One sequence as the core must keep it: its text, its decisions, its rows of KV, its books.

Written from the contracts in csrc/*.h. The text is judged by model_text; what has to be remembered
from one call to the next, and nothing more, is kept here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine._core import Sequence

from .model_text import (
    ERROR,
    NONE,
    STOP,
    WHOLE,
    Request,
    Verdict,
    must_stop_thinking,
    settled,
    thinks,
    verdict,
)

if TYPE_CHECKING:
    from .model_scheduler import SchedulerModel, Span

SMALL, LARGE, NOBODY = 0, 1, -1
PROMPT, CATCHUP, SAMPLED, DISCARDED, RECOMPUTE = range(5)
DECIDE, FINISHED = 0, 1
WAITING, RUNNING, OVER = range(3)
FORCED = -1  # the model of a token that none drew


class SequenceModel:
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
        self.reach_boundary()

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

    # -- boundaries and decisions

    def reach_boundary(self) -> None:
        """The end of the prompt or of a step: the reader computes it or tries its luck, or the
        question comes at once; after a decision for the rest and within a trial there is none."""
        if self.rest_from >= 0 or self.trial_from >= 0:
            self.open_step()
        elif self.request.reader == NOBODY:
            self.ask(NOBODY)
        else:
            self.active = self.request.reader
            if self.steps:  # the boundary's own row is not waited for
                self.decision_wait += self.length - self.computed[self.active] - 1
            if self.request.trial_tokens:
                self.trial_from = self.length
                self.open_step()
            else:
                self.reading = True

    def open_step(self) -> None:
        self.steps.append((self.length, self.active))

    def ask(self, row: int) -> None:
        self.awaits_route = True
        self.core.events.append((DECIDE, self.id, row))

    def route(self, model: int, rest: bool) -> None:
        self.core.turns.changed()
        self.awaits_route = self.reading = False
        if self.trial_from >= 0 and model == self.request.reader:
            self.rest_from = self.trial_from if rest else self.rest_from
            self.trial_from = -1
            self.conclude(self.trial_end)
        else:
            self.hand_over(model, rest)
        self.settle_bets()

    def hand_over(self, model: int, rest: bool) -> None:
        """A step of the model. A token of its own that stands ready is its first."""
        if self.trial_from >= 0:  # the reader knows that text; the other has a row to sample from
            rows = [self.trial_from, self.trial_from]
            rows[model] -= 1
            self.take_back(self.trial_from, rows)
        ready = self.candidate if model == self.request.reader else -1
        if ready >= 0:
            self.book_sample(model, SAMPLED, self.length)
            self.candidate = -1
        self.drop_candidate()
        self.active = model
        self.rest_from = self.length if rest else self.rest_from
        self.open_step()
        if ready >= 0:
            self.append(ready, model)

    def drop_candidate(self) -> None:
        if self.candidate >= 0:
            self.book_sample(self.request.reader, DISCARDED, self.length)
            self.candidate = -1

    # -- the text

    def append(self, token: int, lane: int) -> None:
        said = self.write(token, lane)
        if self.trial_from < 0:
            self.conclude(said)
        else:
            self.try_on(said)

    def try_on(self, said: Verdict) -> None:
        """On trial nothing settles, and the question comes where the trial ends."""
        must_stop = said.end == NONE and must_stop_thinking(self.request, self.written)
        if self.request.trial_tokens == WHOLE:
            said = self.stop_thinking() if must_stop else said
            goes_on = said.end == NONE
        else:
            short = self.length - self.trial_from < self.request.trial_tokens
            goes_on = said == Verdict() and short and not must_stop
        if not goes_on:
            self.trial_end = said
            self.ask(NOBODY)
        elif said.boundary:
            self.open_step()

    def write(self, token: int, lane: int) -> Verdict:
        self.tokens.append(token)
        self.drawn.append(lane)
        said = verdict(self.request, self.written, self.steps[-1][0] - self.prompt)
        self.cut_bytes = said.cut
        return said

    def stop_thinking(self) -> Verdict:
        """What ends the thinking part is written until it has ended; a boundary follows."""
        said = Verdict()
        for token in self.request.think_end:
            said = self.write(token, FORCED)
            if said.end != NONE or not thinks(self.request, self.written):
                break
        return said

    def conclude(self, said: Verdict) -> None:
        """What is settled stays; then the text ends, its step does, or it goes on."""
        if said.end == NONE and must_stop_thinking(self.request, self.written):
            said = self.stop_thinking()
        if self.request.settle_at_once and said.end != STOP:
            certain = settled(self.request, self.prompt, self.written)
            self.settled = max(self.settled, certain)
        if said.end != NONE:
            self.end(said.end)
        elif said.boundary:
            self.reach_boundary()

    # -- the end

    def end(self, reason: int) -> None:
        """Now, or when what is in flight has retired; the first reason counts."""
        self.end_pending = self.end_pending or reason
        self.drop_candidate()
        self.awaits_route = self.reading = False
        if not self.busy:
            self.over()

    def over(self) -> None:
        self.finish, self.end_pending = self.end_pending, NONE
        self.phase, self.settled, self.trial_from, self.cut_pending = OVER, self.length, -1, -1
        self.awaits_route = self.reading = self.suspended = False
        for model in (SMALL, LARGE):
            self.lose_bet(model)
            self.keep(model, 0)
        self.core.leave(self)

    # -- taking back

    def truncate(self, length: int) -> None:
        if length == self.length:
            return
        self.core.turns.changed()
        if self.busy:
            self.cut_pending = length if self.cut_pending < 0 else min(self.cut_pending, length)
            self.drop_candidate()  # a question that is out is void
            self.awaits_route = False
        else:
            self.cut(length)

    def cut(self, length: int) -> None:
        """The model that wrote what ended there goes on, or the boundary there is reached again."""
        steps = list(self.steps)
        self.take_back(length, [length - 1, length - 1])
        self.active = next(model for start, model in reversed(steps) if start <= length)
        if length in (start for start, _ in steps):
            self.reach_boundary()

    def take_back(self, length: int, rows: list[int]) -> None:
        self.drop_candidate()
        self.core.void_events(self)
        for position in range(length, self.length):
            if (lane := self.drawn[position - self.prompt]) != FORCED:
                self.book(lane, SAMPLED, position - 1, position, -1)
                self.book(lane, DISCARDED, position - 1, position)
        del self.tokens[length:], self.drawn[length - self.prompt :]
        self.attempt += 1
        self.steps = [step for step in self.steps if step[0] < length]
        self.cut_bytes, self.trial_end = 0, Verdict()
        if self.cut_pending >= length:
            self.cut_pending = -1
        self.rest_from = -1 if self.rest_from >= length else self.rest_from
        self.trial_from = -1 if self.trial_from >= length else self.trial_from
        self.awaits_route = self.reading = False
        for model in (SMALL, LARGE):
            self.lose_bet(model)
            if not self.flying[model]:
                self.keep(model, rows[model])
            self.highest[model] = min(self.highest[model], length)

    def settle(self, length: int) -> None:
        self.core.turns.changed()
        self.settled = length
        for model in (SMALL, LARGE):
            self.core.register(self, model)

    @property
    def stands(self) -> int:
        """Tokens that may be settled: not on trial, not about to be taken back."""
        ends = [self.length, self.trial_from, self.cut_pending]
        return min(end for end in ends if end >= 0)

    # -- KV

    def keep(self, model: int, rows: int) -> None:
        """Gives up the rows after. A block that others may read is left whole or given back."""
        rows = min(self.computed[model], rows)
        full, part = divmod(rows, self.core.size)
        if part and (full < self.known[model] or self.core.is_shared(self, model, full)):
            rows -= part
        self.computed[model] = rows
        del self.blocks[model][self.core.blocks_for(rows) :]
        self.known[model] = min(self.known[model], full)

    def give_up(self, model: int) -> None:
        """preempt(): all KV of a model, in flight when it retires."""
        self.lose_bet(model)
        if self.flying[model]:
            self.gives_up[model] = True
        else:
            self.core.lost[model] += self.computed[model]
            self.keep(model, 0)

    # -- bets

    def settle_bets(self) -> None:
        """What was planned ahead is in flight now, if a plan made now would hold just that; lost,
        if no answer to a question can make it so any more."""
        for lane, bet in enumerate(self.bets):
            if bet is None or self.flying[lane]:
                continue
            here = bet.first == self.computed[lane] and bet.attempt == self.attempt
            last = bet.first + bet.rows
            samples_as_planned = last == self.length if bet.samples else last < self.length
            if here and self.runnable(lane) and samples_as_planned:
                self.flying[lane], self.bets[lane] = bet.rows, None
                self.core.win(lane, bet, self.tokens)
            elif not here or not self.may_still_win(lane, last):
                self.lose_bet(lane)

    def may_still_win(self, lane: int, last: int) -> bool:
        read_elsewhere = self.reading and self.active != lane
        if self.pending or not (self.awaits_route or read_elsewhere):
            return False
        own = self.candidate >= 0 and self.request.reader == lane
        return last == self.length + own

    def lose_bet(self, lane: int) -> None:
        if (bet := self.bets[lane]) is None:
            return
        self.bets[lane], bet.void = None, True
        self.book(lane, DISCARDED, bet.first, bet.first + bet.rows)
        self.core.voided[lane] += bet.rows
        rows = self.computed[lane] + self.flying[lane]
        del self.blocks[lane][self.core.blocks_for(rows) :]

    # -- the books

    def book(self, lane: int, kind: int, first: int, last: int, times: int = 1) -> None:
        """Rows [first, last); each attends to the keys up to its own."""
        self.rows[lane][kind][0] += times * (last - first)
        self.rows[lane][kind][1] += times * sum(range(first + 1, last + 1))

    def book_sample(self, lane: int, kind: int, keys: int) -> None:
        self.book(lane, kind, keys - 1, keys)
        if self.last_sampler != lane:
            self.entries[lane][0] += keys - 1
            self.entries[lane][1] += sum(range(1, keys))
        self.last_sampler = lane

    def book_others(self, lane: int, first: int, last: int) -> None:
        for row in range(first, last):
            again, past = row < self.highest[lane], row >= self.prompt
            self.book(lane, RECOMPUTE if again else CATCHUP if past else PROMPT, row, row + 1)

    # -- a batch comes home

    def retire(self, lane: int, row: int, samples: bool, token: int, found: int) -> None:
        """``found``: rows that the core has now, fewer where others took some in flight."""
        last = self.computed[lane] + self.flying[lane]
        self.book_others(lane, self.computed[lane], last - samples)
        self.flying[lane], self.computed[lane] = 0, last
        self.highest[lane] = max(self.highest[lane], last)
        self.core.register(self, lane)
        if self.gives_up[lane]:
            self.core.lost[lane] += last
            self.keep(lane, 0)
        elif self.may_lose[lane] and found < last and found % self.core.size == 0:
            self.core.lose(self, lane, found)
        self.gives_up[lane] = self.may_lose[lane] = False
        if samples and token < 0:
            self.core.distrust()
            if not self.pending:
                self.end_pending = ERROR
        if self.pending:
            self.take_effect(lane, samples, last)
        elif samples and self.reading:
            self.candidate = token
            self.ask(row)
        elif samples:
            self.book_sample(lane, SAMPLED, last)
            self.append(token, lane)

    def take_effect(self, lane: int, samples: bool, keys: int) -> None:
        """Something waited for this batch: its token is dropped."""
        if samples:
            self.book_sample(lane, DISCARDED, keys)
        if self.end_pending != NONE and not self.busy:
            self.over()
        elif not self.busy:
            length, self.cut_pending = self.cut_pending, -1
            self.cut(length)
