"""The audit of one request: the large model's log-probabilities of the tokens it caught up on."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

from engine import _core
from engine.execution.logprobs import Drawn
from engine.request import Retracted
from engine.requests.step_log import StepLog
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
    _end: int = 0  # all positions in ``large`` lie before it
    _scored: int = 0  # scores of the text as it is now end here; they come in order of position
    _judged: int = 0  # steps before it have been judged
    _attempt: int = 0  # truncations when it followed them last

    def follow(self, sequence: _core.SequenceView) -> None:
        """Take note of truncations: what was written in place of the old text is judged anew."""
        kept = sequence.kept_since(self._attempt)
        self._attempt = sequence.attempt
        self._scored, self._judged = min(self._scored, kept), min(self._judged, kept)

    def add(self, position: int, logprob: float) -> None:
        """Add the large model's log-probability of a position's token; call ``follow`` first."""
        self._keep(position, logprob)
        self.rows += 1

    def _keep(self, position: int, logprob: float) -> None:
        self.large[position] = logprob
        self._end, self._scored = max(self._end, position + 1), max(self._scored, position + 1)

    def foresee(self, drawn: Drawn) -> None:
        """Keep the large model's likeliest tokens at a boundary that it computed.

        It does not compute that row again, so no other score of the step's first token comes.
        """
        if drawn.logprobs.top:
            self._foreseen[drawn.position] = dict(drawn.logprobs.top)

    def compare(self, core: _core.Scheduler, sequence: _core.SequenceView) -> None:
        """Score the tokens that were written where ``foresee`` kept the likeliest ones.

        A token that is not among them gets the log-probability of the least likely, an upper bound.
        """
        for position in [p for p in self._foreseen if p < sequence.length]:
            top = self._foreseen.pop(position)
            token = int(core.tokens_since(sequence.id, position, 1)[0])
            least = min(top.values())
            self._keep(position, self.large.get(position, top.get(token, least)))

    def forget(self, position: int) -> None:
        """Drop the scores from a position on: its tokens were rolled back."""
        for place in range(position, self._end):
            self.large.pop(place, None)
        self._end, self._scored = min(self._end, position), min(self._scored, position)
        self._judged = min(self._judged, position)
        for place in [p for p in self._foreseen if p > position]:
            del self._foreseen[place]

    def pairs(
        self, first: int, last: int, small: Callable[[int], float | None]
    ) -> list[tuple[float, float]]:
        """(log p_small, log p_large) of the tokens [first, last); empty if one is unknown."""
        scores = [(small(p), self.large.get(p)) for p in range(first, last)]
        known = [(s, large) for s, large in scores if s is not None and large is not None]
        return known if len(known) == len(scores) else []

    def doubted(
        self,
        core: _core.Scheduler,
        sequence: _core.SequenceView,
        steps: StepLog,
        small: Callable[[int], float | None],
    ) -> int | None:
        """Position of the earliest unsettled step that fails the audit, now to be rolled back.

        None if there is none. ``steps``: those of the sequence; ``small`` gives log p_small by
        position. A step that has ended and passed is not looked at again.
        """
        if not self.rule.rolls_back:
            return None
        steps.follow(core, sequence)
        starts, length = steps.starts, sequence.length
        unsettled = bisect_left(starts, sequence.settled)
        for i in range(max(unsettled, bisect_right(starts, self._judged) - 1), len(starts)):
            start, end = starts[i], starts[i + 1] if i + 1 < len(starts) else length
            if end > self._scored:
                return None
            # A step that the small model wrote again, because of a budget, stays.
            if steps.models[i] == _SMALL and start not in self.redo:
                pairs = self.pairs(start, end, small)
                if pairs and self.rule.doubts(pairs):
                    own = core.tokens_since(sequence.id, start, end - start).tolist()
                    self._retract(start, tuple(own), length - start, pairs)
                    return start
            if end < length:
                self._judged = end
        return None

    def _retract(
        self, start: int, own: tuple[int, ...], dropped: int, pairs: list[tuple[float, float]]
    ) -> None:
        score = step_score(self.rule.score, pairs)
        self.retracted.append(Retracted(start, own, dropped, score))
        while self.redo and next(reversed(self.redo)) >= start:
            self.redo.popitem()
        self.redo[start] = f"audit: {self.rule.score} log p {score:.3g} < {self.rule.mark:.3g}"
        self.forget(start)
