"""Verified requests for the random drivers: what the small model guesses, and which guesses stand.

Both follow from the text alone, so the text does not depend on how many tokens a pass verifies, nor
on when it runs.
"""

from __future__ import annotations

from engine._core import Plan, Sequence

from .kinds import LARGE, NOBODY, SMALL
from .random_arena import virtual_model
from .random_driver import Driver


def verified_guess(prefix: int) -> int:
    """What the small model writes: right in one of two, else any token that can be read."""
    draw = hash((prefix, 13)) % 400
    return virtual_model(LARGE, prefix) if draw < 200 else draw % 8


def stands(prefix: int, guess: int) -> bool:
    """Does the large model let a guess stand that it would not have written?"""
    return hash((prefix, guess, 17)) % 2 == 0


class Verifying(Driver):
    """Two of three requests are verified, some of them to the end of the step.

    most: the most tokens that a pass verifies. It shall change no text.
    """

    most = 4
    verified: dict[int, bool]  # by sequence: does the large model finish the step?

    def add(self) -> None:
        if len(self.alive) >= 10:
            return
        before = set(self.alive)
        kind, most = self.random.randrange(3), 1 + self.random.randrange(15)
        self.drafts = (min(most, self.most),)
        finishes, verified = kind == 1, kind > 0
        self.more |= {"verified": verified, "finishes_step": finishes}
        self.readers = (NOBODY, SMALL, SMALL) if verified else (NOBODY, SMALL, SMALL, LARGE)
        super().add()
        if not hasattr(self, "verified"):
            self.verified = {}
        if verified:
            self.verified |= dict.fromkeys(set(self.alive) - before, finishes)

    def draw(self, lane: int, plan: Plan, i: int, hashes: list[int]) -> list[int]:
        id, context = int(plan.ids[i]), int(plan.contexts[i])
        if id not in self.verified:
            return super().draw(lane, plan, i, hashes)
        if plan.guesses[i]:
            return [verified_guess(hashes[context])]
        draws = super().draw(lane, plan, i, hashes)
        if lane == SMALL or id not in self.prompts or not plan.samples[i]:
            return draws
        sequence = self.scheduler.sequence(id)
        first = context - int(plan.samples[i]) + 1
        if not sequence.draft or sequence.finishing_step or first != sequence.length:
            return draws
        for k, guess in enumerate(sequence.draft[: len(draws)]):
            if stands(hashes[first + k], guess):
                draws[k] = guess
        return draws

    def check_draws(self, lane: int, plan: Plan, i: int, sequence: Sequence) -> None:
        """What follows the last guess is not drawn, but guessed first; and nothing else is."""
        super().check_draws(lane, plan, i, sequence)
        if sequence.id in self.verified and lane == LARGE and plan.samples[i]:
            assert 1 <= plan.samples[i] <= len(sequence.draft)

    def written(self, s: Sequence, start: int, end: int, model: int, hashes: list[int]) -> None:
        """A verified step: the guesses that stand, and the large model's tokens where none does."""
        if s.id not in self.verified or model == SMALL:
            return super().written(s, start, end, model, hashes)
        tokens, replaced, finishing = s.tokens.tolist(), [], False
        for at in (i for i in range(start, end) if i not in s.forced):
            own, guess = virtual_model(LARGE, hashes[at]), verified_guess(hashes[at])
            stood = guess == own or (not finishing and stands(hashes[at], guess))
            assert tokens[at] == (guess if stood else own)
            finishing = self.verified[s.id] and (finishing or not stood)
            if finishing or not stood:
                replaced.append(at)
        assert [at for at in s.replaced if start <= at < end] == replaced
        self.seen["replaced"] += len(replaced)
        self.seen["stood"] += end - start - len(replaced)
        return None
