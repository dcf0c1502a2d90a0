"""The final answer of a free text, and whether it is the expected one."""

from __future__ import annotations

import re
from fractions import Fraction

from engine.tuning.numerals import (
    is_formula,
    numerals,
    plain_number,
    starts_with_number,
    words_beside,
)

_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_HASHES = re.compile(r"^[ \t]*####(?!#)(.*)$", re.MULTILINE)
_SAID = re.compile(
    r"\banswer\b(?:\s+(?:to|for)\s[^\n.:=\d]{0,80}?)?[\s*_]*(?:\bis\b|\bequals\b|:|=)(?!\s*not\b)"
    r"(?P<gap>[\s*_:]*)(?=(?P<rest>[^\n]{0,200}))",
    re.IGNORECASE,
)
_COMMA = re.compile(r"(?<![\\{])[,;](?!\d{3}(?!\d))")  # no thousands comma, no space of LaTeX
_SPACES = re.compile(r"\s{2,}|\t")
_BOLD = re.compile(r"\*\*(.+?)\*\*|__(.+?)__")
_LISTED = re.compile(r"[\s*_]*\d+[.):][*_]*\s+(?=\S)")  # the number of an item
_CLAUSE_ENDS = re.compile(
    r"[.,;](?=[\s*_]|$)|(?<=[\w*_%$]) ?\((?=\w)|—"
    r"|\s(?:because|since|which|as|so|but|for|in|on|per|after|from)\b"
)


def final_answer(text: str) -> str:
    """The last boxed answer, else what follows the last ####, else the last number or line."""
    for marked in (_boxed(text), text.rpartition("####")[2] if "####" in text else ""):
        if marked.strip():
            return marked.strip()
    numbers = _NUMBER.findall(text)
    lines = text.strip().splitlines()
    return str(numbers[-1]) if numbers else lines[-1] if lines else ""


def final_number(text: str) -> Fraction | None:
    """The number that a text gives as its answer; None if it gives none.

    Marked answers come first, the last of each kind and in this order: ``<answer>``, ``\\boxed{}``
    (both must hold one number, after the last = if there is one, and no formula: 3x), ``#### X``
    (X is a number with at most a unit), "answer is X" or "answer: X", bold in the last line that
    holds a number. Without a mark it is the last number of that line: "18 of 20" is 20. The number
    of a list item is not an answer. For the notation of numbers see ``engine.tuning.numerals``.
    """
    text = _squeezed(text)
    if (given := marked_answer(text)) is not None:
        return None if is_formula(given.rpartition("=")[2]) else _only(given)
    for clauses in (_after_hashes(text), _said(text)):
        for clause in reversed(clauses):
            if (value := _named(clause)) is not None:
                return value
    lines = map(_without_item, reversed(text.splitlines()))
    last = next(filter(numerals, lines), "")
    for span in reversed(_BOLD.findall(last)):
        said = "".join(span)
        if (value := _named(said)) is not None or (value := _told(said)) is not None:
            return value
    return (numerals(last) or [None])[-1]


def marked_answer(text: str) -> str | None:
    """The content of the last answer tags (of a box in them, if any), else of the last box."""
    end = text.rfind("</answer>")
    begin = text.rfind("<answer>", 0, max(end, 0))
    if begin < 0:
        return _boxed(text) or None
    tagged = text[begin + len("<answer>") : end]
    return _boxed(tagged) or tagged


def hashed_answer(text: str) -> str | None:
    """The last text after #### that reads as a number; None if there is none."""
    lines = _after_hashes(_squeezed(text))
    return lines[-1] if lines else None


def _squeezed(text: str) -> str:
    """A text without empty lines and long runs of spaces, which would be slow to search."""
    return "\n".join(_SPACES.sub(" ", line) for line in text.splitlines() if line.strip())


def _only(text: str) -> Fraction | None:
    """The one number of a text, after its last =; None if there are several.

    Several are also assumed where a comma comes before a further =, as in x = 3, y = 4.
    """
    comma = _COMMA.search(text)
    if comma and "=" in text[comma.end() :]:
        return None
    numbers = numerals(text.rpartition("=")[2])
    return numbers[0] if len(numbers) == 1 else None


def _named(clause: str) -> Fraction | None:
    """The number that a clause begins with, if it is the only one up to a comma or the like."""
    return _only(_CLAUSE_ENDS.split(clause, 1)[0]) if starts_with_number(clause) else None


def _told(sentence: str) -> Fraction | None:
    """The one number of a text that ends with a sum of money: "Tom spent $18", not "Step 3"."""
    last = sentence.split()[-1:]
    money = any(set(word) & set("$€£¥₹") and starts_with_number(word) for word in last)
    return _only(sentence) if money else None


def _after_hashes(text: str) -> list[str]:
    """The texts after #### that hold a number with at most a unit; any other is a heading.

    A separate word as unit ("2 children") also makes a heading if a number comes later in the text.
    """
    last_digit = max(map(text.rfind, "0123456789"))
    lines = []
    for hashes in _HASHES.finditer(text):
        line = hashes[1]
        most = int(last_digit < hashes.end())
        if starts_with_number(line) and not _LISTED.match(line) and words_beside(line) <= most:
            lines.append(line)
    return lines


def _said(text: str) -> list[str]:
    """The texts after each "answer is", except a list that begins on the next line."""
    answers = [(said["gap"], said["rest"]) for said in _SAID.finditer(text)]
    return [rest for gap, rest in answers if "\n" not in gap or not _LISTED.match(rest)]


def _without_item(line: str) -> str:
    """A line without the number of a list item."""
    item = _LISTED.match(line)
    return line[item.end() :] if item else line


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


def expected_number(expected: str) -> Fraction | None:
    """The value of an expected answer that is a plain number, also if boxed or after ####."""
    return plain_number(_wanted(expected))


def _wanted(expected: str) -> str:
    marked = "\\boxed{" in expected or "####" in expected
    return final_answer(expected) if marked else expected


def matches(expected: str, text: str) -> bool:
    """Whether a text's answer is the expected one.

    A number is compared with :func:`final_number` of the text; other answers with
    :func:`final_answer`, ignoring case and punctuation, or with the last word. An expected answer
    that is boxed or follows #### is extracted first.
    """
    number = expected_number(expected)
    if number is not None:
        return final_number(text) == number
    wanted = _plain(_wanted(expected))
    given = _plain(final_answer(text))
    if given == wanted:
        return True
    try:
        return Fraction(given) == Fraction(wanted)
    except (ValueError, ZeroDivisionError):
        words = text.split()
        return bool(words) and _plain(words[-1]) == wanted


def agree(first: str, second: str) -> bool:
    """Whether two texts give the same answer; as numbers if both give one."""
    one, two = final_number(first), final_number(second)
    if one is None or two is None:
        return final_answer(first) == final_answer(second)
    return one == two


def _plain(answer: str) -> str:
    return answer.replace(",", "").replace("$", "").strip().rstrip(".").casefold()
