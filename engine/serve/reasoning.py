"""Parts the thoughts of an answer from the rest."""

from __future__ import annotations

from dataclasses import dataclass, field

OPEN, CLOSE = "<think>", "</think>"


def opens_thinking(tail: str) -> bool:
    """Whether a prompt that ends so begins the thoughts, as some chat templates do."""
    return tail.rstrip().endswith(OPEN)


def held_back(text: str, marker: str) -> int:
    """Characters at the end of a text that may begin ``marker``."""
    for size in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0


@dataclass
class ReasoningSplitter:
    """Takes the text of an answer piece by piece; gives (thoughts, content) for each.

    The rule: an answer whose prompt ends in ``<think>``, or that begins with it, is thoughts up to
    the first ``</think>``, and all of them if there is none; any other answer is content only. The
    markers belong to neither. What may be part of a marker is held back.
    """

    thinking: bool = False
    _begins: bool = True  # nothing but what may become <think> has come
    _rest: str = field(default="", repr=False)

    def take(self, text: str) -> tuple[str, str]:
        """The next piece."""
        if not (self.thinking or self._begins):
            return "", text
        self._rest += text
        if self._begins and not self._begin():
            return "", ""
        if not self.thinking:
            return "", self._all()
        before, found, after = self._rest.partition(CLOSE)
        if found:
            self.thinking, self._rest = False, ""
            return before, after
        keep = len(self._rest) - held_back(self._rest, CLOSE)
        thoughts, self._rest = self._rest[:keep], self._rest[keep:]
        return thoughts, ""

    def finish(self) -> tuple[str, str]:
        """What was held back, at the end."""
        rest = self._all()
        return (rest, "") if self.thinking else ("", rest)

    def _begin(self) -> bool:
        """Whether it is known what the answer begins with."""
        begun = self._rest.lstrip()
        if len(begun) < len(OPEN) and OPEN.startswith(begun):
            return False
        self._begins = False
        if begun.startswith(OPEN):
            self.thinking, self._rest = True, begun[len(OPEN) :]
        return True

    def _all(self) -> str:
        text, self._rest = self._rest, ""
        return text


def split_reasoning(text: str, thinking: bool) -> tuple[str, str]:
    """(thoughts, content) of a whole answer; ``thinking``: the prompt has begun the thoughts."""
    splitter = ReasoningSplitter(thinking)
    first, last = splitter.take(text), splitter.finish()
    return first[0] + last[0], first[1] + last[1]
