"""Problems from a JSON-lines file: ``{"prompt": ..., "answer": ...}`` a line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from engine.answers import matches
from engine.errors import SteerError
from engine.files import read_text


@dataclass(frozen=True)
class FileProblem:
    """A prompt, given to the models as it is, the expected answer, and its file and line."""

    prompt: str
    answer: str
    where: str = ""


def read_problems(path: Path) -> list[FileProblem]:
    """All problems of a file. SteerError with file and line on the first bad one."""
    lines = read_text(path, "dataset file").split("\n")
    problems = [_parse(f"{path}:{n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    if not problems:
        raise SteerError(f"{path}: no problem in this file")
    return problems


def _parse(where: str, line: str) -> FileProblem:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise SteerError(f"{where}: not JSON: {error}") from None
    prompt, answer = (row.get(k) if isinstance(row, dict) else None for k in ("prompt", "answer"))
    number = isinstance(answer, int | float) and not isinstance(answer, bool)
    if not isinstance(prompt, str) or not prompt or not (number or isinstance(answer, str)):
        raise SteerError(f'{where}: expected {{"prompt": text, "answer": text or number}}')
    if not str(answer).strip():
        raise SteerError(f"{where}: the answer is empty; leave the problem out or give its answer")
    return FileProblem(prompt, str(answer), where)


def is_correct(problem: FileProblem, text: str) -> bool:
    """Whether a text's final answer is the expected one."""
    return matches(problem.answer, text)
