"""Plans against what the sequences need, and against the shadow of the arena."""

from __future__ import annotations

from collections import Counter

from engine._core import Plan, Sequence

from .kinds import LARGE, RUNNING, SMALL
from .random_arena import BLOCK_TOKENS, Arena


def known(sequence: Sequence) -> list[int]:
    """The tokens of a text and the guesses after them."""
    return sequence.tokens.tolist() + sequence.draft


class ArenaChecks:
    """The part of the driver of random operations that looks at its shadow arena.

    host: what the last save left in each slot of host memory.
    seen: what happened, counted.
    """

    arena: Arena
    host: dict[int, list[int]]
    seen: Counter[str]

    def park(self, plan: Plan) -> None:
        """What the runner does first: blocks that hold one thing, and none of two."""
        for block, slot in plan.saves[: plan.saved].tolist():
            rows = [
                set(self.arena.bytes[self.arena.range(LARGE, block * BLOCK_TOKENS + offset)])
                for offset in range(BLOCK_TOKENS)
            ]
            assert all(len(row) == 1 for row in rows), "a row of a saved block was overwritten"
            self.host[slot] = [row.pop() for row in rows]
        for slot, block in plan.restores[: plan.restored].tolist():
            for offset, content in enumerate(self.host[slot]):
                self.arena.write(LARGE, block * BLOCK_TOKENS + offset, content)
        self.seen["saved"] += plan.saved
        self.seen["restored"] += plan.restored

    def copy(self, lane: int, plan: Plan) -> None:
        """What the runner does before the pass."""
        self.park(plan)
        copies = plan.copies[: plan.copied].tolist()
        sources, targets = ({pair[i] for pair in copies} for i in (0, 1))
        assert len(targets) == len(copies) and not sources & targets, "copies run all at once"
        for source, target in copies:
            self.seen["copied"] += 1
            for offset in range(BLOCK_TOKENS):
                rows = [self.arena.range(lane, b * BLOCK_TOKENS + offset) for b in (source, target)]
                self.arena.bytes[rows[1]] = self.arena.bytes[rows[0]]

    def check_rows(self, lane: int, plan: Plan, i: int, rows: slice, sequence: Sequence) -> None:
        """The rows are the sequence's next ones and go where its block table says."""
        context, first = int(plan.contexts[i]), sequence.computed[lane]
        positions = list(range(first, context))
        table = plan.blocks[i].tolist()
        assert plan.positions[rows].tolist() == positions
        assert plan.tokens[rows].tolist() == known(sequence)[first:context]
        assert plan.slots[rows].tolist() == [
            table[p // BLOCK_TOKENS] * BLOCK_TOKENS + p % BLOCK_TOKENS for p in positions
        ]
        self.check_draws(lane, plan, i, sequence)
        assert sequence.in_flight[lane] == len(positions) > 0
        assert sequence.phase == RUNNING
        reads_along = sequence.active != lane and not sequence.drafting
        if reads_along:  # settled tokens, none sampled
            self.seen["background"] += 1
            assert context < sequence.settled
            return
        if plan.samples[i]:
            assert (plan.attempts[i], sequence.awaits_route) == (sequence.attempt, False)

    def check_draws(self, lane: int, plan: Plan, i: int, sequence: Sequence) -> None:
        """The model that writes draws after the last token and each guess; or a guess is drawn."""
        context, draws = int(plan.contexts[i]), int(plan.samples[i])
        guesses = sequence.drafting and lane == SMALL
        drawn_from = len(known(sequence)) if guesses else sequence.length
        assert draws == max(0, context - drawn_from + 1)
        assert plan.guesses[i] == (guesses and draws == 1)
        assert draws <= 1 + len(sequence.draft)
        self.seen["verified"] += draws > 1

    def check_context(self, lane: int, table: list[int], rows: int, hashes: list[int]) -> None:
        """The first rows of KV are there, untouched by anybody."""
        for position in range(rows):
            slot = table[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS
            content = hash((hashes[position + 1], lane))
            assert self.arena.holds(lane, slot, content), f"position {position} was overwritten"
