"""Modules of at most 350 lines, functions of at most 50; 300 and 30 are wanted.

A class of csrc/ has at most 40 public methods. Kernels may have longer functions: what is fused
stays in one. A docstring does not count.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULE, FUNCTION, METHODS = 350, 50, 40


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


def public_methods(header: str) -> dict[str, int]:
    """Of each class and struct of a C++ header; those inside another one are left out."""
    text = re.sub(r"//.*|^#.*", "", header, flags=re.MULTILINE)
    counts = {}
    for found in re.finditer(r"^(class|struct) (\w+)[^;{]*\{(.*?)^\};", text, re.M | re.S):
        kind, name, body = found.groups()
        while (flat := re.sub(r"\{[^{}]*\}", ";", body)) != body:
            body = flat
        access = "public" if kind == "struct" else "private"
        parts = re.split(r"\b(public|private|protected):", f"{access}:{body}")[1:]
        sections = zip(parts[::2], parts[1::2], strict=True)
        statements = ";".join(part for access, part in sections if access == "public").split(";")
        statements = [s for s in statements if not s.strip().startswith("using ")]
        counts[name] = sum("(" in statement for statement in statements)
    return counts


def test_classes_of_the_core():
    counts: dict[str, int] = {}
    for path in files(".h"):
        counts |= public_methods(path.read_text())
    assert {"Scheduler", "TextReader", "KvCache", "Plan"} <= counts.keys()
    assert {name: count for name, count in counts.items() if count > METHODS} == {}


def test_public_methods_are_counted():
    header = """
struct Plain : Base {
  int x{1};
  std::int32_t length() const { return x; }
};
class Both {
 public:
  using Take = std::function<int()>;
  struct Inner {
    int none();
  };
  explicit Both(int x);  // not this()
  template <typename T>
  T two(T x,
        T y);

 private:
  void hidden();
};
"""
    assert public_methods(header) == {"Plain": 1, "Both": 2}


def test_a_docstring_does_not_count():
    source = 'def f():\n    """One\n    two."""\n    return 1\n'
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    assert body_lines(function) == 2
