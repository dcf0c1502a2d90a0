"""The step detector, against a plain search over the bytes."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine._core import Cursor, StepDetector


def plain_search(
    delimiters: list[bytes], token_bytes: list[bytes], tokens: list[int]
) -> list[bool]:
    """Boundaries by the definition, slowly.

    Read the whole text from left to right; a match is the longest delimiter that ends at a byte
    and lies after the match before it. A token is a boundary if a match ends in it and the open
    step holds bytes that no match covers.
    """
    text = b""
    behind = 0  # the search starts here
    covered: list[bool] = []  # by byte of the text
    step = 0  # where the open step begins
    boundaries = []
    for token in tokens:
        matched = False
        for byte in token_bytes[token] if 0 <= token < len(token_bytes) else b"":
            text += bytes([byte])
            covered.append(False)
            ends = [d for d in delimiters if text[behind:].endswith(d)]
            if ends:
                longest = len(max(ends, key=len))
                covered[-longest:] = [True] * longest
                behind, matched = len(text), True
        boundaries.append(matched and not all(covered[step:]))
        if boundaries[-1]:
            step = len(text)
    return boundaries


def search(delimiters: list[bytes], token_bytes: list[bytes], tokens: list[int]) -> list[bool]:
    detector, cursor = StepDetector(delimiters, token_bytes), Cursor()
    return [detector.feed(cursor, token) for token in tokens]


TEXT = [b"x", b"\n", b"\n\n", b".\n\n", b"", b"x\n\ny", b"\n\n\n", b"\n\nx\n"]
X, NEWLINE, BOTH, DOT_BOTH, SPECIAL, INSIDE, THREE, TAIL = range(8)


@pytest.mark.parametrize(
    ("tokens", "boundaries"),
    [
        ([X, BOTH], [False, True]),
        ([DOT_BOTH], [True]),
        ([X, NEWLINE, NEWLINE], [False, False, True]),
        ([X, NEWLINE, X, NEWLINE], [False] * 4),
        ([INSIDE], [True]),
        ([X, BOTH, BOTH, X, BOTH], [False, True, False, False, True]),
        ([BOTH, BOTH], [False, False]),
        ([NEWLINE, NEWLINE, DOT_BOTH], [False, False, True]),
        ([X, NEWLINE, SPECIAL, NEWLINE], [False, False, False, True]),
        ([X, NEWLINE, 99, -1, NEWLINE], [False, False, False, False, True]),
        ([SPECIAL, 99, -1], [False] * 3),
        ([X, THREE, NEWLINE], [False, True, False]),
    ],
)
def test_by_hand(tokens: list[int], boundaries: list[bool]) -> None:
    """Cases written out: straddling, inside, only delimiters, tokens without text."""
    assert search([b"\n\n"], TEXT, tokens) == boundaries
    assert plain_search([b"\n\n"], TEXT, tokens) == boundaries


def test_a_delimiter_across_the_seam_of_two_steps_hides_no_text() -> None:
    """Only the part of a delimiter that lies in the open step counts as the step's delimiters."""
    tokens = [X, THREE, NEWLINE, X, BOTH]  # the third newline of THREE begins the second match
    assert search([b"\n\n"], TEXT, tokens) == [False, True, False, False, True]


def test_several_delimiters() -> None:
    """Any of them ends a step."""
    assert search([b";", b"\n\n"], [b"a", b";", b"\n\n"], [0, 1, 0, 2]) == [False, True] * 2


def test_the_longest_delimiter_that_ends_here_covers_the_step() -> None:
    """A step of one long delimiter holds nothing else, though a shorter one ends there too."""
    assert search([b"ab", b"b"], [b"a", b"b"], [0, 1]) == [False, False]
    assert search([b"b"], [b"a", b"b"], [0, 1]) == [False, True]


def test_the_search_restarts_behind_a_match() -> None:
    """Matches do not overlap: three newlines hold one delimiter, four hold two."""
    assert search([b"\n\n"], [b"x", b"\n"], [0, 1, 1, 1, 0]) == [False, False, True, False, False]


def test_cursors_are_independent() -> None:
    """One detector serves many sequences."""
    detector, one, two = StepDetector([b"\n\n"], TEXT), Cursor(), Cursor()
    detector.feed(one, X), detector.feed(two, X)
    assert not detector.feed(one, NEWLINE)
    assert not detector.feed(two, X)
    assert detector.feed(one, NEWLINE)
    assert not detector.feed(two, NEWLINE)


@pytest.mark.parametrize("delimiters", [[], [b""], [b"\n\n", b""]])
def test_delimiters_that_make_no_sense(delimiters: list[bytes]) -> None:
    """There must be one, and none may be empty."""
    with pytest.raises(ValueError, match="delimiter"):
        StepDetector(delimiters, TEXT)


def test_all_byte_values() -> None:
    """Bytes are bytes: zero and those past 127 are like any other."""
    assert search([b"\x00\xff"], [b"a\x00", b"\xff"], [0, 1]) == [False, True]


# Few letters, so that delimiters overlap, nest and straddle tokens all the time.
WORDS = st.binary(max_size=5).map(lambda raw: bytes(b"ab\n"[byte % 3] for byte in raw))


@settings(max_examples=500, deadline=None, database=None)
@given(
    delimiters=st.lists(WORDS.filter(bool), min_size=1, max_size=4),
    token_bytes=st.lists(WORDS, min_size=1, max_size=8),
    tokens=st.lists(st.integers(-1, 9), max_size=40),
)
@example(delimiters=[b"\n\n"], token_bytes=TEXT, tokens=[X, THREE, NEWLINE, X, BOTH])
@example(delimiters=[b"ab", b"ba", b"aba"], token_bytes=[b"a", b"b", b""], tokens=[0, 1, 2, 0, 1])
def test_against_a_plain_search(
    delimiters: list[bytes], token_bytes: list[bytes], tokens: list[int]
) -> None:
    """The automaton and the plain search agree on every token."""
    assert search(delimiters, token_bytes, tokens) == plain_search(delimiters, token_bytes, tokens)
