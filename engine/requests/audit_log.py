"""The audit of one request: log-probabilities from the rows that the large model caught up on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from engine import _core
from engine.execution.logprobs import Drawn
from engine.request import Retracted
from engine.routing.audit import Audit, step_score

_SMALL = 0
FORESEEN = 20  # likeliest tokens that are kept of a row that a reading large model drew from


@dataclass
class AuditLog:
    """What is known so far. ``rows``: how many rows went through the head for it."""

    rule: Audit
    rows: int = 0
    large: dict[int, float] = field(default_factory=dict)  # log p_large, by position
    redo: dict[int, str] = field(default_factory=dict)  # steps that the large model must write
    retracted: list[Retracted] = field(default_factory=list)
    _foreseen: dict[int, dict[int, float]] = field(default_factory=dict)

    def add(self, position: int, logprob: float) -> None:
        """What the large model thinks of the token at a place."""
        self.large[position] = logprob
        self.rows += 1

    def foresee(self, drawn: Drawn) -> None:
        """Keep what the large model expected where it read a boundary.

        It does not compute that row again, so this is all there is about the step's first token.
        """
        if drawn.logprobs.top:
            self._foreseen[drawn.position] = dict(drawn.logprobs.top)

    def compare(self, sequence: _core.Sequence) -> None:
        """Score tokens that stand where the large model had expected some.

        One that was not among them is no likelier than the least of them.
        """
        for position in [p for p in self._foreseen if p < sequence.length]:
            top = self._foreseen.pop(position)
            token = int(sequence.tokens[position])
            self.large.setdefault(position, top.get(token, min(top.values())))

    def forget(self, position: int) -> None:
        """Drop what stood from here on: it was taken back."""
        for place in [p for p in self.large if p >= position]:
            del self.large[place]
        for place in [p for p in self._foreseen if p > position]:
            del self._foreseen[place]

    def pairs(
        self, first: int, last: int, small: Callable[[int], float | None]
    ) -> list[tuple[float, float]]:
        """(log p_small, log p_large) of the tokens [first, last); empty if one is unknown."""
        found = [(small(p), self.large.get(p)) for p in range(first, last)]
        known = [(s, large) for s, large in found if s is not None and large is not None]
        return known if len(known) == len(found) else []

    def doubted(self, sequence: _core.Sequence, small: Callable[[int], float | None]) -> int | None:
        """Where to cut: the earliest open step of the small model that the rule doubts."""
        if not self.rule.rolls_back:
            return None
        tokens, steps = sequence.tokens, sequence.steps
        ends = [*(start for start, _ in steps[1:]), sequence.length]
        for (start, model), end in zip(steps, ends, strict=True):
            if model != _SMALL or start < sequence.settled or end <= start:
                continue
            if start in self.redo:  # a budget gave it to the small model again: it stands
                continue
            pairs = self.pairs(start, end, small)
            if pairs and self.rule.doubts(pairs):
                score = step_score(self.rule.score, pairs)
                own = tuple(tokens[start:end].tolist())
                self.retracted.append(Retracted(start, own, sequence.length - start, score))
                kind, mark = self.rule.score, self.rule.mark
                self.redo = {at: why for at, why in self.redo.items() if at < start}
                self.redo[start] = f"audit: {kind} log p {score:.3g} < {mark:.3g}"
                self.forget(start)
                return start
        return None
