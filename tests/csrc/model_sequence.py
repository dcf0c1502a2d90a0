"""One sequence as the core must keep it: its text, its decisions, its rows of KV, its books.

Written from the contracts in the headers of csrc/. The text is judged by model_text; what is
remembered from one call to the next is in model_sequence_state, rows of KV and books in
model_sequence_rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .kinds import DECIDE, DISCARDED, ERROR, LARGE, NOBODY, NONE, OVER, SAMPLED, SMALL, STOP, WHOLE
from .model_guesses import GuessedSequence
from .model_sequence_state import FORCED
from .model_text import Request, Verdict, must_stop_thinking, settled, thinks, verdict

if TYPE_CHECKING:
    from .model_scheduler import SchedulerModel


class SequenceModel(GuessedSequence):
    def __init__(
        self, core: SchedulerModel, id: int, group: int, samples: int, request: Request
    ) -> None:
        super().__init__(core, id, group, samples, request)
        self.reach_boundary()

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
        self.drop_round()
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
        self.drop_round()
        self.keep_leftover(length)
        self.core.void_events(self)
        for position in range(length, self.length):
            if (lane := self.drawn[position - self.prompt]) != FORCED:
                self.book(lane, SAMPLED, position - 1, position, -1)
                self.book(lane, DISCARDED, position - 1, position)
        del self.tokens[length:], self.drawn[length - self.prompt :]
        self.attempt += 1
        self.steps = [step for step in self.steps if step[0] < length]
        self.cut_bytes, self.trial_end = 0, Verdict()
        self.replaced = [at for at in self.replaced if at < length]
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

    # -- a batch comes home

    def retire(self, lane: int, row: int, draws: list[int], found: int) -> None:
        """``draws``: from the last of its rows. ``found``: rows that the core has now, fewer where
        others took some in flight."""
        last = self.computed[lane] + self.flying[lane]
        self.book_others(lane, self.computed[lane], last - len(draws))
        self.flying[lane], self.computed[lane] = 0, last
        self.highest[lane] = max(self.highest[lane], last)
        self.core.register(self, lane)
        lossy = self.may_lose[lane] and not self.gives_up[lane]
        verifies = bool(draws) and lane == LARGE and self.wanted > 0 and not self.pending
        if self.gives_up[lane]:
            self.core.lost[lane] += last
            self.keep(lane, 0)
        elif lossy and found < last and found % self.core.size == 0 and not verifies:
            self.core.lose(self, lane, found)
        self.gives_up[lane] = self.may_lose[lane] = False
        if draws and (self.active != lane or self.open):
            self.guess(draws[0], last)
            self.take_effect()
        elif not draws or self.pending or draws[0] < 0:
            self.drop_draws(lane, draws, last)
        elif self.reading:
            self.candidate = draws[0]
            self.ask(row)
        elif lane == LARGE and self.request.draft_tokens and self.trial_from < 0:
            self.verify(draws, found if lossy else None)
        else:
            self.book_sample(lane, SAMPLED, last)
            self.append(draws[0], lane)

    def drop_draws(self, lane: int, draws: list[int], last: int) -> None:
        """Unusable logits, or something that waited for this batch."""
        if draws and draws[0] < 0:
            self.core.distrust()
            self.end_pending = self.end_pending or (NONE if self.pending else ERROR)
        for keys in range(last - len(draws) + 1, last + 1):
            self.book_sample(lane, DISCARDED, keys)
        self.take_effect()

    def take_effect(self) -> None:
        """What waited for the batch in flight."""
        if self.busy or not self.pending:
            return
        if self.end_pending != NONE:
            self.over()
        else:
            length, self.cut_pending = self.cut_pending, -1
            self.cut(length)
