"""Which tokens of a text are maths: digits, operators, LaTeX commands, and formulas."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import accumulate

# From the bytes of a step's tokens, in order: whether each one counts.
TokenMask = Callable[[Sequence[bytes]], Sequence[bool]]

_SIGNS = "\u00d7÷±·√∑∫≤≥≠≈∈∞→"  # the first is the multiplication sign
_MATHS = re.compile(
    rb"\$\$.+?\$\$"
    # As in Pandoc: "$5 and $6" is no formula.
    rb"|\$(?!\s)[^$]*?[^$\s\\]\$(?![0-9])"
    rb"|\\\(.*?\\\)|\\\[.*?\\\]"
    rb"|\\[A-Za-z]+"
    rb"|[0-9]+"
    rb"|[+*/=<>^%]"
    # A hyphen within a word is none.
    rb"|(?<![A-Za-z\x80-\xff])-|-(?![A-Za-z\x80-\xff])|"
    + b"|".join(sign.encode() for sign in _SIGNS),
    re.DOTALL,
)


def maths_tokens(tokens: Sequence[bytes]) -> list[bool]:
    """Whether each token of a step is maths, by the default rule.

    A token counts if a part of it is a digit, an operator or a LaTeX command, or lies in a formula
    (``$..$``, ``$$..$$``, ``\\(..\\)`` or ``\\[..\\]``) that begins and ends within the step.

    Args:
        tokens: the bytes of each token of the step; special tokens have none and never count.
    """
    ends = list(accumulate(map(len, tokens)))
    spans = [match.span() for match in _MATHS.finditer(b"".join(tokens))]
    counts, span = [], 0
    for token, end in zip(tokens, ends, strict=True):
        while span < len(spans) and spans[span][1] <= end - len(token):
            span += 1
        counts.append(span < len(spans) and len(token) > 0 and spans[span][0] < end)
    return counts
