"""What one rendering of a chat template may use, and Jinja's filters, which charge it.

- Time: SECONDS on the clock, looked at in each pass of a loop, each call and each piece of text.
- Text: CHARACTERS, or GROWTH times the values' text if that is more. All text that is written, put
  together or returned by a call counts, and so do the items of lists: this bounds memory as well.
- Numbers: BITS of an integer that comes from ``*`` or ``**``, DIGITS of a width.

A single operation of Python is not interrupted: those whose result can be far longer than what they
are given are checked before, or left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, ItemsView, Iterable, KeysView, ValuesView
from contextvars import ContextVar
from functools import wraps
from time import monotonic
from typing import Any

from jinja2 import pass_environment, pass_eval_context
from jinja2.filters import FILTERS

from engine.errors import SteerError

SECONDS = 5.0
CHARACTERS = 64_000_000
GROWTH = 1000
BITS = 10_000
DIGITS = 6
ITEM = 16

# A wide field of a text for ``%`` or ``str.format``, or one whose width comes from a value.
_WIDE_PERCENT = re.compile(rf"%[-#0 +]*\d*\.?(?:\*|\d{{{DIGITS},}})")
_WIDE_NAMED = re.compile(rf"\)[-#0 +]*\d*\.?\d{{{DIGITS},}}")
_WIDE_BRACES = re.compile(rf"\{{[^{{}}]*(?:\{{|\d{{{DIGITS},}})")
_TEXT_OF_ITEMS = frozenset(
    (
        "capitalize",
        "e",
        "escape",
        "forceescape",
        "lower",
        "pprint",
        "safe",
        "string",
        "striptags",
        "title",
        "trim",
        "upper",
        "urlencode",
        "wordcount",
    )
)
_LEFT_OUT = ("urlize", "xmlattr", "wordwrap", "batch", "slice")


class Meter:
    """What one rendering may still use."""

    def __init__(self) -> None:
        self._end = monotonic() + SECONDS
        self._used, self._most = 0, CHARACTERS

    def add(self, values: Any) -> None:
        """Let the text grow with what the template is given."""
        self.charge_items(values)
        self._most, self._used = max(CHARACTERS, GROWTH * self._used), 0

    def charge(self, characters: int = 1) -> None:
        """Count what is made. SteerError where a limit is reached."""
        self._used += characters
        if self._used > self._most:
            raise SteerError(f"the chat template makes more than {self._most} characters of text")
        if monotonic() > self._end:
            raise SteerError(f"the chat template runs for more than {SECONDS:g} seconds")

    def charge_items(self, value: Any, indent: int = 0) -> None:
        """Charge a value's text before it is made: lists can hold one another many times."""
        pending = [(value, 1)]
        while pending:
            item, depth = pending.pop()
            self.charge(1 + depth * indent + (len(item) if isinstance(item, str) else 0))
            if isinstance(item, dict):
                pending += [(part, depth + 1) for pair in item.items() for part in pair]
            elif isinstance(item, list | tuple | KeysView | ValuesView | ItemsView):
                pending += [(part, depth + 1) for part in item]

    def text(self, value: Any) -> str:
        """``str(value)``, charged before."""
        if isinstance(value, str):
            self.charge(len(value))
        else:
            self.charge_items(value)
        return str(value)


METER: ContextVar[Meter] = ContextVar("METER")


def length_of(value: Any) -> int:
    """Characters of a text; a list's item takes as much memory as ITEM of them."""
    if isinstance(value, str):
        return len(value)
    return ITEM * len(value) if isinstance(value, list | tuple | dict) else 0


def check_widths(*values: Any) -> None:
    """SteerError for a number that is too large for a text's width."""
    for value in values:
        if whole(value) >= 10**DIGITS:
            raise SteerError(f"the chat template asks for text of width {value}")


def check_percent(text: str) -> None:
    """SteerError if a text for ``%`` has a wide field."""
    wide = _WIDE_PERCENT.search(text) or ("%(" in text and _WIDE_NAMED.search(text))
    if wide:
        raise SteerError(f"the chat template asks for text that is too wide: {wide[0]}")


def check_braces(text: str) -> None:
    """SteerError if a text for ``str.format`` has a wide field."""
    if wide := _WIDE_BRACES.search(text.replace("{{", "").replace("}}", "")):
        raise SteerError(f"the chat template asks for text that is too wide: {wide[0]}")


def whole(value: Any) -> int:
    """The size of a whole number; 0 for all else."""
    return abs(value) if isinstance(value, int) else 0


def charged_filters() -> dict[str, Callable[..., Any]]:
    """Jinja's filters by name as transformers has them, less those that write HTML or tables."""
    return {
        name: _charged(function, name in _TEXT_OF_ITEMS)
        for name, function in (FILTERS | _own_filters()).items()
        if name not in _LEFT_OUT
    }


def _charged(function: Callable[..., Any], makes_text: bool) -> Callable[..., Any]:
    """A filter that charges what it returns and, if it makes text of items, first what it gets."""

    @wraps(function)  # keeps Jinja's mark of a filter that takes the context
    def charged(*args: Any, **kwargs: Any) -> Any:
        meter = METER.get()
        if makes_text:
            meter.charge_items((args, kwargs))
        result = function(*args, **kwargs)
        meter.charge(1 + length_of(result))
        return result

    return charged


def _own_filters() -> dict[str, Callable[..., Any]]:
    """Filters that can return far more than they are given, and ``tojson``."""

    @pass_eval_context
    def join(context: Any, value: Iterable[Any], d: Any = "", attribute: Any = None) -> Any:
        items, meter = list(value), METER.get()
        meter.charge_items(items)
        meter.charge(len(items) * len(meter.text(d)))
        return FILTERS["join"](context, items, d, attribute)

    @pass_eval_context
    def replace(context: Any, s: Any, old: Any, new: Any, count: int | None = None) -> Any:
        meter = METER.get()
        text, new_text = meter.text(s), meter.text(new)
        meter.charge(text.count(meter.text(old)) * len(new_text))
        return FILTERS["replace"](context, s, old, new, count)

    def indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> Any:
        meter = METER.get()
        size = len(width) if isinstance(width, str) else whole(width)
        meter.charge((meter.text(s).count("\n") + 1) * size)
        return FILTERS["indent"](s, width, first, blank)

    def center(value: Any, width: int = 80) -> Any:
        METER.get().charge(whole(width) + len(METER.get().text(value)))
        return FILTERS["center"](value, width)

    def formatted(value: Any, *args: Any, **kwargs: Any) -> Any:
        check_percent(METER.get().text(value))
        METER.get().charge_items((args, dict(kwargs)))
        return FILTERS["format"](value, *args, **kwargs)

    @pass_environment
    def total(environment: Any, values: Any, attribute: Any = None, start: Any = 0) -> Any:
        if not isinstance(start, int | float):
            raise SteerError("the chat template sums what are no numbers")
        return FILTERS["sum"](environment, values, attribute, start)

    return {
        "sum": total,
        "join": join,
        "replace": replace,
        "indent": indent,
        "center": center,
        "format": formatted,
        "tojson": _to_json,
    }


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as text; replaces Jinja's own filter, which escapes HTML."""
    width = len(indent) if isinstance(indent, str) else whole(indent)
    width += sum(map(length_of, separators or ()))
    METER.get().charge_items(value, width)
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
