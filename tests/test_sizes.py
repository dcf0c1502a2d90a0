"""Modules of at most 350 lines, functions of at most 50; 300 and 30 are wanted.

Kernels may have longer functions: what is fused stays in one. A docstring does not count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULE, FUNCTION = 350, 50


def files(*suffixes: str) -> Iterator[Path]:
    for folder in ("engine", "kernels", "bench", "csrc", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in suffixes:
                yield path


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From its first line to its last one, without the docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is None:
        return lines
    text = function.body[0]
    assert text.end_lineno is not None
    return lines - (text.end_lineno - text.lineno + 1)


def test_modules():
    lengths = {p: len(p.read_text().splitlines()) for p in files(".py", ".cpp", ".h")}
    long = {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MODULE}
    assert long == {}


def test_functions():
    long = []
    for path in files(".py"):
        if path.parts[len(ROOT.parts)] == "kernels":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if function and (lines := body_lines(node)) > FUNCTION:
                long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines}")
    assert long == []


def test_a_docstring_does_not_count():
    source = 'def f():\n    """One\n    two."""\n    return 1\n'
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    assert body_lines(function) == 2
