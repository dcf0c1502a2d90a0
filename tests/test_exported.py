"""What both languages know is written down in csrc/ alone; Python imports it from there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import pytest

from engine import _core
from kernels import _cpu

ROOT = Path(__file__).parents[1]
STUBS = {"engine/_core.pyi": _core, "kernels/_cpu.pyi": _cpu}
ENUMERATIONS = (_core.RowKind, _core.Finish, _core.EventKind)
TUPLES = [
    value
    for module in (_core, _cpu)
    for value in vars(module).values()
    if isinstance(value, tuple) and not isinstance(value, type)
]
# Words of enumerations that other things are called too.
ORDINARY = {"PROMPT", "NONE", "LENGTH", "ERROR"}


def public(names: object) -> set[str]:
    return {name for name in dir(names) if not name.startswith("_")}


def stub(path: str) -> dict[str, ast.stmt]:
    """What a stub declares, by name, without type aliases and imports."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = _with_bases(node, found)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return {name: node for name, node in found.items() if not name.startswith("_")}


def _with_bases(node: ast.stmt, known: dict[str, ast.stmt]) -> ast.stmt:
    """A class that holds what its private bases declare too."""
    if isinstance(node, ast.ClassDef):
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id in known:
                node.body += known[base.id].body
    return node


EXPORTED = {name for module in STUBS.values() for name in public(module) if name.isupper()}
MEMBERS = {member.upper() for each in ENUMERATIONS for member in each.__members__} - ORDINARY
NAMES = EXPORTED | MEMBERS


def targets(node: ast.AST) -> list[str]:
    """The names that an assignment binds."""
    match node:
        case ast.Assign(targets=each):
            return [name for target in each for name in targets(target)]
        case ast.AnnAssign(target=target):
            return targets(target)
        case ast.Tuple(elts=each):
            return [name for element in each for name in targets(element)]
        case ast.Name(id=name):
            return [name]
    return []


def is_written_down(value: ast.expr | None) -> bool:
    """Numbers, texts and ranges of them, as opposed to what is looked up."""
    match value:
        case ast.Constant(value=int() | str()):
            return True
        case ast.UnaryOp(operand=operand):
            return is_written_down(operand)
        case ast.Tuple(elts=each) | ast.List(elts=each):
            return all(map(is_written_down, each))
        case ast.Call(func=ast.Name(id="range"), args=each):
            return all(map(is_written_down, each))
    return False


def is_exported_tuple(value: ast.expr | None) -> bool:
    """The same words in the same order, or the first of them."""
    if not isinstance(value, ast.Tuple | ast.List) or len(value.elts) < 2:
        return False
    words = tuple(each.value for each in value.elts if isinstance(each, ast.Constant))
    return any(words == known[: len(value.elts)] for known in TUPLES)


def written_down(root: Path) -> Iterator[str]:
    """``file:line: NAME`` of each constant that a module defines instead of importing it."""
    for folder in ("engine", "kernels", "bench", "tests"):
        for path in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Assign | ast.AnnAssign):
                    continue
                names = [name for name in targets(node) if name.lstrip("_") in NAMES]
                if is_exported_tuple(node.value):
                    names = targets(node)
                if names and is_written_down(node.value):
                    yield f"{path.relative_to(root)}:{node.lineno}: {', '.join(names)}"


def test_nothing_is_written_down_twice():
    assert list(written_down(ROOT)) == []


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("_SMALL, _LARGE = range(2)", "_SMALL, _LARGE"),
        ("SMALL, LARGE, NOBODY = 0, 1, -1", "SMALL, LARGE, NOBODY"),
        ("    NOBODY: int = -1", "NOBODY"),
        ("_DECIDE = 0", "_DECIDE"),
        ('ROW_KINDS = ("prompt", "catchup")', "ROW_KINDS"),
        ("_LONGEST_HEAD = 512", "_LONGEST_HEAD"),
        ("_STOP = 1", "_STOP"),
        ("NONE, STOP, LENGTH, REPETITION = 0, 1, 2, 6", "STOP, REPETITION"),
        ("kinds = ('prompt', 'catchup', 'sampled', 'discarded')", "kinds"),
    ],
)
def test_a_second_definition_is_named(tmp_path: Path, line: str, named: str):
    """Also within a class or a function; what is taken from the core is not."""
    (tmp_path / "bench").mkdir()
    head = "class Inner:\n" if line.startswith(" ") else "\n"
    (tmp_path / "bench" / "it.py").write_text(f"_SMALL = _core.SMALL\n{head}{line}\n")
    assert list(written_down(tmp_path)) == [f"bench/it.py:3: {named}"]


@pytest.mark.parametrize("path", STUBS)
def test_stubs_declare_what_the_modules_have(path: str):
    """All names, and of enumerations all members in their order."""
    declared, module = stub(path), STUBS[path]
    assert set(declared) == public(module)
    for name, node in declared.items():
        value = getattr(module, name)
        if isinstance(value, type) and issubclass(value, IntEnum):
            assert isinstance(node, ast.ClassDef)
            members = [member for each in node.body for member in targets(each)]
            assert members == list(value.__members__), name
            assert [int(member) for member in value] == list(range(len(members)))
        elif isinstance(value, type):
            assert isinstance(node, ast.ClassDef)
            own = {n for n in vars(value) if not n.startswith(("_", "n_"))}
            assert {n for n in _declared_in(node) if not n.startswith("_")} == own, name


def _declared_in(node: ast.ClassDef) -> Iterator[str]:
    for each in node.body:
        if isinstance(each, ast.FunctionDef):
            yield each.name
        elif isinstance(each, ast.AnnAssign):
            yield from targets(each)


def test_the_numbers_stay():
    """Traces, results and stored random draws depend on some of these."""
    assert (_core.SMALL, _core.LARGE, _core.NOBODY, _core.WHOLE_ANSWER) == (0, 1, -1, -1)
    assert (
        *("prompt", "catchup", "sampled", "discarded", "recompute", "drafted", "rejected"),
    ) == _core.ROW_KINDS
    assert (
        *("none", "stop", "length", "abort", "error", "deadline", "repetition"),
    ) == _core.FINISH_REASONS
    assert _core.LANE_POLICIES == ("latency", "weighted", "throughput", "auto")
    assert tuple(_core.Phase.__members__) == ("waiting", "running", "finished")
    assert tuple(_core.EventKind.__members__) == ("decide", "finished")
    assert (_cpu.LONGEST_HEAD, _cpu.QUERY_ROWS, len(_cpu.LAYER_WEIGHTS)) == (512, 8, 12)


def test_names_and_enumerations_agree():
    assert tuple(_core.RowKind.__members__) == _core.ROW_KINDS
    assert tuple(_core.Finish.__members__) == _core.FINISH_REASONS
