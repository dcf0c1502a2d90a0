"""Problems from a JSON-lines file: ``{"prompt": ..., "answer": ...}`` a line."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from engine.errors import SteerError
from engine.files import read_text

_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


@dataclass(frozen=True)
class FileProblem:
    """A prompt, given to the models as it is, and the expected answer."""

    prompt: str
    answer: str


def read_problems(path: Path) -> list[FileProblem]:
    """All problems of a file. SteerError with file and line on the first bad one."""
    lines = read_text(path, "dataset file").splitlines()
    problems = [_parse(path, n, line) for n, line in enumerate(lines, 1) if line.strip()]
    if not problems:
        raise SteerError(f"{path}: no problem in this file")
    return problems


def _parse(path: Path, number: int, line: str) -> FileProblem:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise SteerError(f"{path}:{number}: not JSON: {error}") from None
    if not isinstance(row, dict) or not row.get("prompt") or "answer" not in row:
        raise SteerError(f'{path}:{number}: expected {{"prompt": ..., "answer": ...}}')
    return FileProblem(str(row["prompt"]), str(row["answer"]))


def answer_of(text: str) -> str:
    """The last boxed answer, else the last number, else the last line."""
    for pattern in (_BOXED, _NUMBER):
        found = pattern.findall(text)
        if found:
            return str(found[-1])
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def is_correct(problem: FileProblem, text: str) -> bool:
    """Whether the answers are the same but for white space, case and thousands separators."""

    def plain(answer: str) -> str:
        return answer.replace(",", "").strip().rstrip(".").casefold()

    return plain(answer_of(text)) == plain(problem.answer)
