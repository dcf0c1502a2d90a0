"""Prompts for a calibration, from a JSON-lines file; answers are optional."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import SteerError
from engine.files import parse_json, read_text
from engine.tuning.answers import matches

IsRight = Callable[[int, str], bool]  # (index of the prompt, answer) -> whether it is right


@dataclass(frozen=True)
class Prompts:
    """Prompts and, if known, their answers in the same order."""

    texts: tuple[str, ...]
    answers: tuple[str, ...] | None = None

    @property
    def is_right(self) -> IsRight | None:
        """A function that checks answers; None without known answers."""
        answers = self.answers
        return None if answers is None else lambda i, text: matches(answers[i], text)


def digest(prompt: str) -> str:
    """A short hash that identifies a prompt of a calibration without storing its text."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]


def read_prompts(path: Path) -> Prompts:
    """Read a whole file. SteerError with file and line on the first bad line."""
    rows: list[tuple[str, str | None]] = []
    for number, line in enumerate(read_text(path, "prompts file").split("\n"), 1):
        if line.strip():
            rows.append(_parse(f"{path}:{number}", line))
            if (rows[-1][1] is None) != (rows[0][1] is None):
                raise SteerError(f"{path}:{number}: give an answer on every line, or on none")
    if not rows:
        raise SteerError(f"{path}: no prompt in this file")
    answers = tuple(answer for _, answer in rows if answer is not None)
    return Prompts(tuple(prompt for prompt, _ in rows), answers or None)


def _parse(where: str, line: str) -> tuple[str, str | None]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise SteerError(f"{where}: not JSON: {error}") from None
    prompt, answer = (row.get(k) if isinstance(row, dict) else None for k in ("prompt", "answer"))
    number = isinstance(answer, int | float) and not isinstance(answer, bool)
    if (
        not isinstance(prompt, str)
        or not prompt
        or not (answer is None or number or isinstance(answer, str))
    ):
        raise SteerError(f'{where}: expected {{"prompt": text}}, with an "answer" or without')
    if answer is not None and not str(answer).strip():
        raise SteerError(f"{where}: the answer is empty; leave it out on every line, or give it")
    return prompt, None if answer is None else str(answer)
