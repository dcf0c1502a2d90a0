"""What the core must find in a text, by plain search over the whole of it.

Everything here looks at a finished list of tokens and knows nothing of automata, cursors or what
was found before: slow, and right by reading it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .kinds import LENGTH, NONE, REPETITION, STOP

LONGEST_PIECE, SHORTEST_LOOP = 256, 32

TOKEN_BYTES = [b"a", b"b", b"c", b"\n", b"\n\n", b".\n\n", b"\n\n\n", b""]
PADDING = 9  # past the table: a token without text
DELIMITERS = [b"\n\n", b"c."]


@dataclass(frozen=True)
class Request:
    """The arguments of one add()."""

    prompt: list[int]
    max_tokens: int
    stop_ids: Sequence[int] = ()
    reader: int = -1
    priority: int = 0
    settle_at_once: bool = True
    stop_strings: Sequence[bytes] = ()
    min_tokens: int = 0
    max_step_tokens: int = 0
    trial_tokens: int = 0
    think_end: Sequence[int] = ()
    think_closed: bool = False
    max_think_tokens: int = 0
    max_repeats: int = 0
    ahead: bool = True
    draft_tokens: int = 0
    draft_source: str = "small"
    verified: bool = False
    finishes_step: bool = False


class Verdict(NamedTuple):
    """What the last token of a text asks for."""

    end: int = NONE
    boundary: bool = False
    cut: int = 0  # bytes from where the stop began


_BYTES = [*TOKEN_BYTES, *[b""] * (PADDING + 1 - len(TOKEN_BYTES))]


def text_of(tokens: Sequence[int]) -> bytes:
    return b"".join([_BYTES[t] for t in tokens])


def matches(text: bytes, patterns: Sequence[bytes]) -> list[tuple[int, int]]:
    """(begin, end) of each match: first ended, first found; the longest of those that end
    together; none begins before the one in front of it has ended."""
    found, last = [], 0
    for end in range(1, len(text) + 1):
        lengths = [len(p) for p in patterns if text.endswith(p, last, end)]
        if lengths:
            found.append((end - max(lengths), end))
            last = end
    return found


def delimited(written: Sequence[int], opened: int) -> bool:
    """Does a delimiter end in the last token, and holds the step more than delimiters? The step
    began with token ``opened``."""
    text, step = text_of(written), len(text_of(written[:opened]))
    found = [(begin, end) for begin, end in matches(text, DELIMITERS) if end > step]
    covered = sum(end - max(begin, step) for begin, end in found)
    ends_here = any(end > len(text_of(written[:-1])) for _, end in found)
    return ends_here and covered < len(text) - step


def stop(request: Request, written: Sequence[int]) -> int | None:
    """Bytes to cut if the text stops here. What ends in the first min_tokens tokens is no stop."""
    text, early = text_of(written), len(text_of(written[: request.min_tokens]))
    for begin, end in matches(text, request.stop_strings):
        if end > early:
            return len(text) - begin
    if len(written) > request.min_tokens and written[-1] in request.stop_ids:
        return len(text_of(written[-1:]))
    return None


def open_bytes(request: Request, written: Sequence[int]) -> int:
    """Bytes at the end that may yet grow into a stop string."""
    text = text_of(written)
    found = matches(text, request.stop_strings)
    tail = text[found[-1][1] if found else 0 :]
    grows = [n for s in request.stop_strings for n in range(len(s)) if tail.endswith(s[:n])]
    return max(grows, default=0)


def repeats(times: int, written: Sequence[int]) -> bool:
    """Is the end one piece so many times in a row, and long enough to be a loop?"""
    for piece in range(1, min(LONGEST_PIECE, len(written)) + 1 if times else 0):
        total = max(times * piece, SHORTEST_LOOP)
        if total <= len(written):
            end = list(written[-total:])
            if end[piece:] == end[:-piece]:
                return True
    return False


def thinks(request: Request, written: Sequence[int]) -> bool:
    """Has the text not yet come to what ends its thinking part? Tokens without text are ids."""
    mark, size = list(request.think_end), len(request.think_end)
    if not mark or request.think_closed:
        return False
    if all(text_of([token]) for token in mark):
        return text_of(mark) not in text_of(written)
    places = range(len(written) - size + 1)
    return not any(list(written[i : i + size]) == mark for i in places)


def verdict(request: Request, written: Sequence[int], opened: int) -> Verdict:
    """A stop goes before a loop, a loop before the length, and any end before a boundary."""
    cut = stop(request, written)
    if cut is not None:
        return Verdict(STOP, cut=cut)
    if repeats(request.max_repeats, written):
        return Verdict(REPETITION)
    if len(written) >= request.max_tokens:
        return Verdict(LENGTH)
    too_long = 0 < request.max_step_tokens <= len(written) - opened
    thought = thinks(request, written[:-1]) and not thinks(request, written)
    return Verdict(boundary=too_long or thought or delimited(written, opened))


def must_stop_thinking(request: Request, written: Sequence[int]) -> bool:
    return 0 < request.max_think_tokens <= len(written) and thinks(request, written)


def settled(request: Request, prompt: int, written: Sequence[int]) -> int:
    """Tokens, the prompt's included, none of which can belong to a stop string any more."""
    missing, end = open_bytes(request, written), len(written)
    while missing > 0 and end > 0:
        end -= 1
        missing -= len(text_of(written[end : end + 1]))
    return prompt + end
