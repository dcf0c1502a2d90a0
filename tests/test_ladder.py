"""Imports go one way: a module may use its own room and the rooms below it. See docs/overview.md.

The ladder names every room, the lowest first; a module that is in none of them has to be given one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LADDER = [
    "csrc/cpu",
    "csrc/types.h",
    "csrc/request.h",
    "csrc/text",
    "csrc/kv",
    "csrc/schedule",
    "csrc",
    "engine._core",
    "kernels._cpu",
    "kernels",
    "kernels.ops",
    "kernels.aot",
    "engine.errors",
    "engine.progress",
    "engine.out_of_memory",
    "engine.files",
    "engine.gguf",
    "engine.config",
    "engine.text",
    "engine.routing",
    "engine.models",
    "engine.accounting",
    "engine.params",
    "engine.request",
    "engine.replay",
    "engine.device",
    "engine.execution",
    "engine.requests",
    "engine.assembly",
    "engine.engine",
    "engine.engine_flags",
    "engine.conversation",
    "engine.tuning",
    "engine.aio",
    "engine.serve",
    "engine.cli",
    "engine.tiny",
    "engine",
    "bench",
]
WHOLE = ("engine", "engine.tiny")  # the public names, and data: no module stands in these rooms
FACE = "kernels.ops"  # what engine/ sees of kernels/
APART = {"csrc/text", "csrc/kv"}  # beside each other: neither includes the other


def room(name: str) -> str:
    """The room of a module, or of a file of csrc/."""
    if name in LADDER:
        return name
    inside = [r for r in LADDER if r not in WHOLE and name.startswith((r + ".", r + "/"))]
    assert inside, f"{name} has no room: name it in LADDER"
    return max(inside, key=len)


@cache
def import_nodes(text: str) -> list[ast.AST]:
    """Each text is read once: the copies of the tests below are one file apart."""
    kinds = (ast.Import, ast.ImportFrom)
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]


def python_imports(path: Path, root: Path) -> Iterator[str]:
    for node in import_nodes(path.read_text()):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                place = root / name.replace(".", "/")
                module = place.is_dir() or place.with_suffix(".py").exists()
                stub = place.with_suffix(".pyi").exists()
                yield name if module or stub else node.module


def imports(root: Path) -> Iterator[tuple[str, str]]:
    """(module, what it imports) of all packages, and (file, what it includes) of csrc/."""
    for package in ("engine", "kernels", "bench"):
        for path in sorted((root / package).rglob("*.py")):
            module = ".".join(path.relative_to(root).with_suffix("").parts)
            for name in python_imports(path, root):
                if name.split(".")[0] in ("engine", "kernels", "bench"):
                    yield module.removesuffix(".__init__"), name
    for path in sorted((root / "csrc").rglob("*.*")):
        for name in re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE):
            beside = path.parent / name
            target = beside if beside.exists() else root / "csrc" / name
            yield str(path.relative_to(root)), str(target.resolve().relative_to(root.resolve()))


def offences(root: Path) -> list[str]:
    """Imports that go up the ladder, or past the face of kernels/."""
    wrong = []
    for module, name in imports(root):
        if LADDER.index(room(name)) > LADDER.index(room(module)):
            wrong.append(f"{module} imports {name}, which is above it")
        elif module.startswith("engine") and name.startswith("kernels") and room(name) != FACE:
            wrong.append(f"{module} imports {name}: engine/ sees {FACE} only")
        elif room(name) == "csrc/cpu" != room(module):
            wrong.append(f"{module} includes {name}: the core knows no kernel")
        elif {room(module), room(name)} == APART:
            wrong.append(f"{module} includes {name}: text and KV do not know each other")
    return wrong


def test_imports_go_down_the_ladder():
    assert offences(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("engine/text/chat.py", "from engine.engine import Engine", "imports engine.engine, which"),
        ("engine/gguf/file.py", "from engine import config", "imports engine.config, which"),
        ("engine/device/graphs.py", "    import kernels.norm", "engine/ sees kernels.ops only"),
        ("kernels/norm.py", "from engine.errors import SteerError", "imports engine.errors, which"),
        ("engine/cli.py", "from bench import rows", "imports bench.rows, which is above it"),
        ("csrc/types.h", '#include "cpu/team.h"', "csrc/cpu/team.h: the core knows no kernel"),
        ("csrc/cpu/team.h", '#include "../types.h"', "imports csrc/types.h, which is above it"),
        ("csrc/text/loop_guard.h", '#include "schedule/plan.h"', "schedule/plan.h, which is above"),
        ("csrc/kv/block_pool.h", '#include "schedule/plan.h"', "schedule/plan.h, which is above"),
        ("csrc/kv/block_pool.h", '#include "text/automaton.h"', "text and KV do not know each"),
        ("csrc/text/automaton.h", '#include "kv/host_pool.h"', "kv/host_pool.h, which is above it"),
    ],
)
def test_one_that_goes_up_is_named(tmp_path: Path, file: str, line: str, said: str):
    for package in ("engine", "kernels", "bench", "csrc"):
        for path in (ROOT / package).rglob("*"):
            if path.suffix in (".py", ".pyi", ".h", ".cpp"):
                copy = tmp_path / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_text(path.read_text())
    text = (tmp_path / file).read_text()
    start = "def _mutation():\n" if line.startswith(" ") else ""
    (tmp_path / file).write_text(f"{text}\n{start}{line}\n")
    (wrong,) = offences(tmp_path)
    assert said in wrong
    assert wrong.startswith(file.removesuffix(".py").replace("/", ".") if ".py" in file else file)


def test_a_module_without_a_room_is_named(tmp_path: Path):
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "extra.py").write_text("from engine import errors\n")
    with pytest.raises(AssertionError, match=r"engine\.\w+ has no room: name it in LADDER"):
        offences(tmp_path)
