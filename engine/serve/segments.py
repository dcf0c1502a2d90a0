"""The events of a turn, gathered: one piece of text for each step that they touch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.request import Completion, Step, TokenLogprobs
from engine.requests.stream import StreamEvent


@dataclass(slots=True)
class Segment:
    """What one choice wrote in one step and one turn.

    step: the step, if it opens here.
    completion: set in the last segment of a choice, which has nothing else.
    """

    step: Step | None = None
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    completion: Completion | None = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.step or self.text or self.token_ids or self.completion)


def segments(turn: Iterable[tuple[int, StreamEvent]]) -> list[tuple[int, Segment]]:
    """(choice, segment) of a turn's events, in order within each choice."""
    gathered: list[tuple[int, Segment]] = []
    last: dict[int, Segment] = {}
    for choice, event in turn:
        if event.kind != "text" or choice not in last:
            last[choice] = Segment()
            gathered.append((choice, last[choice]))
        segment = last[choice]
        if event.kind == "step":
            segment.step = event.step
        elif event.kind == "done":
            segment.completion = event.completion
        else:
            segment.text += event.text
            segment.token_ids += event.token_ids
            segment.logprobs += event.logprobs or ()
    return [(choice, segment) for choice, segment in gathered if not segment.empty]
