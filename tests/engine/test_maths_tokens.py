"""Which tokens are maths, by the default rule."""

from __future__ import annotations

import random
import re

import pytest

from engine import Engine
from engine.text.maths import maths_tokens


@pytest.mark.parametrize(
    ("tokens", "counted"),
    [
        ("So| the| answer| is| 42|.", " 42"),
        ("x| =| 3|y", " =| 3"),
        ("a| well|-|known| fact", ""),
        ("5|-|x| and| -|y", "5|-| -"),
        (r"take| \|frac|{|a|}| here", r" \|frac"),
        (r"let| $|n| be$| prime| and| odd", " $|n| be$"),
        ("pay| $|five| or| $| six", ""),
        ("it| costs| $|5| and| $|6| here", "5|6"),
        ("$$|a|\nb|$$| text", "$$|a|\nb|$$"),
        (r"by| \|(|n| even|\|)| follows", r" \|(|n| even|\|)"),
        (r"\[|q|\]| then| (|p|)", r"\[|q|\]"),
        (r"an| open| \|(|n| even", ""),
        ("3| ÷ |4| ≤ |x", "3| ÷ |4| ≤ "),
        ("", ""),
    ],
)
def test_by_example(tokens: str, counted: str):
    pieces = [piece.encode() for piece in tokens.split("|")]
    found = [piece for piece, counts in zip(pieces, maths_tokens(pieces), strict=True) if counts]
    assert b"|".join(found).decode() == counted


def test_characters_may_be_cut_and_special_tokens_are_empty():
    cut = ["≤".encode()[:1], "≤".encode()[1:]]
    assert maths_tokens([b"x", *cut, b"", b"y", b"2", b""]) == [
        False,
        True,
        True,
        False,
        False,
        True,
        False,
    ]
    assert maths_tokens([]) == []


def test_the_cut_into_tokens_does_not_matter():
    """A character counts in any cut if it does alone."""
    text = rb"Let $x_1 \ge 2$; then \(y\) is well-known: 3-4 = \frac{a}{b}, or $5 and $ 6."
    alone = maths_tokens([bytes([byte]) for byte in text])
    assert 20 < sum(alone) < 60
    cuts = random.Random(1)
    for _ in range(50):
        ends = sorted(cuts.sample(range(1, len(text)), 20))
        spans = list(zip([0, *ends], [*ends, len(text)], strict=True))
        expected = [any(alone[first:last]) for first, last in spans]
        assert maths_tokens([text[first:last] for first, last in spans]) == expected


def test_the_embedded_pair_writes_little_else(engine: Engine):
    """Its steps are digits and operators; what remains are the ends of steps."""
    text = "47+36*7-15\n\n252\n\n47+252-15\n\n284"
    pieces = [engine.tokenizer.bytes_of([i]) for i in engine.tokenizer.encode(text)]
    others = {p for p, counts in zip(pieces, maths_tokens(pieces), strict=True) if not counts}
    assert others and all(re.fullmatch(rb"\n+", piece) for piece in others)
