"""The audit of one request: the large model's log-probabilities of the tokens it caught up on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from engine import _core
from engine.execution.logprobs import Drawn
from engine.request import Retracted
from engine.routing.audit import Audit, step_score

_SMALL = _core.SMALL
FORESEEN = 20  # likeliest tokens kept of a boundary row that the large model computed


@dataclass
class AuditLog:
    """Scores so far, and the steps that were rolled back.

    rule: the request's audit.
    rows: rows that went through the head only for it.
    large: log p_large of tokens by position.
    redo: by position, steps that the large model must write, and the reason.
    retracted: steps that were rolled back.
    """

    rule: Audit
    rows: int = 0
    large: dict[int, float] = field(default_factory=dict)
    redo: dict[int, str] = field(default_factory=dict)
    retracted: list[Retracted] = field(default_factory=list)
    _foreseen: dict[int, dict[int, float]] = field(default_factory=dict)

    def add(self, position: int, logprob: float) -> None:
        """Add the large model's log-probability of the token at a position."""
        self.large[position] = logprob
        self.rows += 1

    def foresee(self, drawn: Drawn) -> None:
        """Keep the large model's likeliest tokens at a boundary that it computed.

        It does not compute that row again, so no other score of the step's first token comes.
        """
        if drawn.logprobs.top:
            self._foreseen[drawn.position] = dict(drawn.logprobs.top)

    def compare(self, sequence: _core.Sequence) -> None:
        """Score the tokens that were written where ``foresee`` kept the likeliest ones.

        A token that is not among them gets the log-probability of the least likely, an upper bound.
        """
        for position in [p for p in self._foreseen if p < sequence.length]:
            top = self._foreseen.pop(position)
            token = int(sequence.tokens[position])
            self.large.setdefault(position, top.get(token, min(top.values())))

    def forget(self, position: int) -> None:
        """Drop the scores from a position on: its tokens were rolled back."""
        for place in [p for p in self.large if p >= position]:
            del self.large[place]
        for place in [p for p in self._foreseen if p > position]:
            del self._foreseen[place]

    def pairs(
        self, first: int, last: int, small: Callable[[int], float | None]
    ) -> list[tuple[float, float]]:
        """(log p_small, log p_large) of the tokens [first, last); empty if one is unknown."""
        scores = [(small(p), self.large.get(p)) for p in range(first, last)]
        known = [(s, large) for s, large in scores if s is not None and large is not None]
        return known if len(known) == len(scores) else []

    def doubted(self, sequence: _core.Sequence, small: Callable[[int], float | None]) -> int | None:
        """Position of the earliest unsettled step that fails the audit, now to be rolled back.

        None if there is none. ``small`` gives log p_small by position.
        """
        if not self.rule.rolls_back:
            return None
        tokens, steps = sequence.tokens, sequence.steps
        ends = [*(start for start, _ in steps[1:]), sequence.length]
        for (start, model), end in zip(steps, ends, strict=True):
            if model != _SMALL or start < sequence.settled or end <= start:
                continue
            if start in self.redo:  # rewritten by the small model because of a budget: it stays
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
