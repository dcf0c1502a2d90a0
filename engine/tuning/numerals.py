"""Reads numbers as people and models write them: 1,234, $18.50, **18**, 18km/h, 3/4, 1e3."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from itertools import chain, pairwise

_CURRENCY = r"(?:(?:US|CA|AU|NZ|HK|[AC])?[$€£¥₹])"
_VALUE = (
    r"(?:(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?"  # 1,234.5  .5  1e3
    r"(?:(?<=\d)/\d+)?"  # 3/4
)
_PLAIN = re.compile(rf"{_CURRENCY}?([-+]?){_CURRENCY}?({_VALUE})\s?{_CURRENCY}?")
# A unit attached to the number: letters and signs, and no digit but that of a power.
_NUMERAL = re.compile(
    rf"{_CURRENCY}?([-+]?){_CURRENCY}?({_VALUE})"
    r"((?:[%°'\u2019€£¥₹$]|[-/]?[^\W\d_\u2080-\u2089])[^\s\d]*(?:\^-?\d)?)?"
)
_STARTS = re.compile(rf"{_CURRENCY}?[-+]?{_CURRENCY}?\.?\d")
_ORDINAL = re.compile(r"\d[\d,]*(?:st|nd|rd|th)(?![^\W\d_])", re.IGNORECASE)  # 1st, but not 1/3rd
_BEFORE = re.compile(r"^(?:[^\w.$€£¥₹^+-]|_|\.(?!\d)|[-+](?![\d.$€£¥₹]))+")
# Matches only from the start of a run of marks: otherwise each place of a long run would be tried.
_AFTER = re.compile(r"(?<![^\w%°$€£¥₹²³])(?<!_)(?:[^\w%°$€£¥₹²³]|_)+$")
_BETWEEN = re.compile(
    r"[\s=≈→~|;<>]+|(?<=\D):"  # between words
    r"|(?<=\d)[+*\u00d7·](?=[\d.])|(?<=\d)-(?=\d)(?!\d+-\d)(?<!-\d-)(?<!-\d\d-)"  # 9-7, but no date
)
_SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "bn": 10**9,
}
_LETTERS = {"k": 10**3, "M": 10**6}  # K may be kelvin, m metres
_OF_MONEY = {"k": 10**3, "m": 10**6, "b": 10**9}  # in either case, as in $2K
_MONEY = re.compile(rf"[-+]?{_CURRENCY}")
_UNITS = set("ABCFGHJKLMNTVWdghklmst€£¥₹Ω")  # units of one letter; other letters are variables
_POWER = re.compile(r"(?:\^-?\d|[²³])$")
_FUNCTION = re.compile(r"\\([A-Za-z]+)")
# LaTeX commands beside a number that do not change its value.
_NO_FUNCTIONS = {
    "approx",
    "sim",
    "left",
    "right",
    "quad",
    "qquad",
    "displaystyle",
    "degree",
    "circ",
    "mu",
    "Omega",
    "pounds",
    "euro",
    "text",
    "textit",
    "textrm",
    "mbox",
    "mathrm",
}
_SMALL_POWER = re.compile(r"(?<=\d)[⁺⁻]?[⁰¹²³⁴-⁹]+")  # 3², but not cm²
_SMALL_FRACTION = re.compile(r"[¼-¾⅐-⅞]")
_UPRIGHT = r"\\(?:text|mathrm)\s*\{[^{}]*\}"
# LaTeX, HTML, Markdown and typographic forms, each with its plain text.
_REWRITTEN = [
    (re.compile(pattern), sign)
    for pattern, sign in (
        (r"[\u2010-\u2013\u2212]", "-"),
        (r"(?<=\d)(?:\{,\}|\\[,!]|[\u00a0\u2009\u202f])+(?=\d{3}(?!\d))", ","),
        (r"</?[A-Za-z][^<>]*>", " "),
        (r"\\([$%])", r"\1"),
        (rf"\\[dt]?frac\s*\{{\s*({_UPRIGHT})\s*\}}\s*\{{\s*({_UPRIGHT})\s*\}}", r"\1/\2"),  # km/h
        (r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}(?!\s*\^)", r" \1 "),
        (r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}\s*", r" \1"),  # a unit's power
        (r"(-?)\$?\s*\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r" \1\2/\3 "),
        (r"\\[dt]?frac\s*\{\s*-\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r" -\1/\2 "),
        (r"(=|\bis)\s*-\s+(?=[$\d])", r"\1 -"),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})", "°"),
        (
            r"(?<=\d)\s*(?:\\times|\\cdot|[\u00d7·*x])\s*10\s*(?:\^|\*\*)\s*\{?([-+]?\d{1,3})\}?",
            r"e\1",
        ),
        (r"\\[()\[\],;:! ]", " "),
        (r"(?<=\d)\*\*(?=\d)", "^"),
        (r"\*\*|__|`", ""),
    )
]


def plain_number(text: str) -> Fraction | None:
    """The value of a text that is one number, with or without currency marks; else None."""
    match = _PLAIN.fullmatch(text.strip().rstrip("."))
    return _value(match[1], match[2]) if match else None


def numerals(text: str) -> list[Fraction | None]:
    """The numbers of a text in order; None stands for a word that only starts like one.

    Signs, thousands commas, decimals, fractions, mixed numbers and exponents are read; currency
    marks, emphasis and units are ignored; "million" and similar words multiply. A number with a
    comma that is not followed by three digits, a time and a date give None. Words that begin with a
    letter (``m2``), numbers in words and ordinals (``1st``) are skipped.
    """
    numbers: list[Fraction | None] = []
    money = False  # whether the last number has a currency mark
    before: Fraction | None = None  # the previous word, if it is a number without a unit
    for word in _words(text):
        if before is not None and (scale := _scale(word, money)):
            numbers[-1], before = before * scale, None
        elif _starts(word):
            value, bare = _numeral(word)
            money = bool(_MONEY.match(word))
            if before is not None and value is not None and _completes(before, value, word):
                numbers[-1], before = before + (value if before > 0 else -value), None
            else:
                numbers.append(value)
                before = value if bare else None
        else:
            before = None
    return numbers


def _completes(whole: Fraction, part: Fraction, word: str) -> bool:
    """Whether a word is the fraction of a mixed number, as in 3 1/2."""
    return bool(whole) and whole.denominator == 1 and "/" in word and 0 < part < 1


def starts_with_number(text: str) -> bool:
    """Whether the first word is a number, or starts like one."""
    words = _words(text)
    return bool(words) and _starts(words[0])


def _starts(word: str) -> bool:
    return bool(_STARTS.match(word)) and not _ORDINAL.match(word)


def words_beside(text: str) -> int:
    """Number of words that are not part of a number: 1 in "18 apples"."""
    return sum(not _starts(word) and not _scale(word) for word in _words(text))


def _words(text: str) -> list[str]:
    words = (_AFTER.sub("", _BEFORE.sub("", word)) for word in _BETWEEN.split(_rewritten(text)))
    return [word for word in words if word.strip("$")]  # a $ alone begins or ends a formula


def _rewritten(text: str) -> str:
    text = _SMALL_POWER.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[0]), text)
    text = _SMALL_FRACTION.sub(_written_out, text)
    for pattern, sign in _REWRITTEN:
        text = pattern.sub(sign, text)
    return text


def _scale(word: str, money: bool = False) -> int | None:
    """The factor of a word like "million"; None for any other word."""
    if money and word.casefold() in _OF_MONEY:
        return _OF_MONEY[word.casefold()]
    return _LETTERS.get(word) or _SCALES.get(word.casefold())


def is_formula(text: str) -> bool:
    """Whether a number is part of a formula: 3x, 2π, \\sqrt 4, \\log_2 8."""
    text = _rewritten(text)
    if any(command[1] not in _NO_FUNCTIONS for command in _FUNCTION.finditer(text)):
        return True
    words = _words(text)
    attached = (match[3] for word in words if (match := _NUMERAL.fullmatch(word)) and match[3])
    apart = (after for word, after in pairwise(words) if _starts(word) and after not in ("a", "I"))
    return any(map(_is_variable, chain(attached, apart)))


def _is_variable(unit: str) -> bool:
    letter = _POWER.sub("", unit)
    return len(letter) == 1 and letter.isalpha() and letter not in _UNITS


def _written_out(match: re.Match[str]) -> str:
    """½ as 1/2, and 1½ as the two words 1 1/2."""
    after_digit = match.string[max(match.start() - 1, 0) : match.start()].isdigit()
    above, below = unicodedata.normalize("NFKC", match[0]).split("\u2044")
    return f"{' ' * after_digit}{above}/{below}"


def _numeral(word: str) -> tuple[Fraction | None, bool]:
    """A word's value, and whether it has no unit."""
    match = _NUMERAL.fullmatch(word)
    if not match:
        return None, False
    value, unit = _value(match[1], match[2]), match[3] or ""
    scale = _scale(unit.removeprefix("-"), bool(_MONEY.match(word)))
    if value is not None and scale:
        return value * scale, True
    return value, not unit


def _value(sign: str, digits: str) -> Fraction | None:
    above, _, below = digits.replace(",", "").partition("/")
    try:
        return Fraction(sign + above) / Fraction(below or 1)
    except (ValueError, ZeroDivisionError):  # too many digits, or a division by zero
        return None
