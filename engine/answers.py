"""The final answer of a free text, and whether it is the expected one."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def final_answer(text: str) -> str:
    """The last boxed answer, else what follows the last ####, else the last number or line."""
    for found in (_boxed(text), text.rpartition("####")[2] if "####" in text else ""):
        if found.strip():
            return found.strip()
    numbers = _NUMBER.findall(text)
    lines = text.strip().splitlines()
    return str(numbers[-1]) if numbers else lines[-1] if lines else ""


def _boxed(text: str) -> str:
    start = text.rfind("\\boxed{")
    if start < 0:
        return ""
    depth, begin = 0, start + len("\\boxed")
    for end in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[begin + 1 : end]
    return ""


def matches(expected: str, text: str) -> bool:
    """Whether a text's answer equals ``expected`` as a number, or as text but for case and marks.

    What is expected is read like the text if it is boxed or follows ####. Words are also right as
    the last word of the text.
    """
    marked = "\\boxed{" in expected or "####" in expected
    wanted = _plain(final_answer(expected) if marked else expected)
    given = _plain(final_answer(text))
    if given == wanted:
        return True
    try:
        return Fraction(given) == Fraction(wanted)
    except (ValueError, ZeroDivisionError):
        words = text.split()
        return bool(words) and _plain(words[-1]) == wanted


def _plain(answer: str) -> str:
    return answer.replace(",", "").replace("$", "").strip().rstrip(".").casefold()
