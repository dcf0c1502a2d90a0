"""The library's face: the programs of docs/library.md, what is public, what is left alone."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import engine

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), re.DOTALL)
EXPECTED = (
    ["small ", "large ", " tokens, ", " read"],
    [
        "47+36*37-15? -> ",
        "small: ",
        "large: ",
        "what is this? -> error: the tokenizer does not know",
    ],
    ["doubt 0.", " above 0.2", "the large model wrote ", " tokens by the large model"],
    [" tokens a pass, ", "% of guesses right"],
    ["% of the tokens by the large model", "the large model's tokens: ("],
)


def run(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.parametrize("number", range(5))
def test_the_programs_run(tmp_path: Path, number: int):
    """Each as a program of its own, from any folder."""
    assert len(PROGRAMS) == 5
    (tmp_path / "program.py").write_text(PROGRAMS[number])
    done = run("import runpy; runpy.run_path('program.py', run_name='__main__')", tmp_path)
    for text in EXPECTED[number]:
        assert text in done.stdout, done.stdout
    assert not done.stderr


def test_the_public_surface_is_whole():
    """Sorted, there, documented, and typed to the last argument."""
    names = engine.__all__
    assert names == sorted(names) and len(names) == len(set(names))
    listed = [n for n in dir(engine) if not n.startswith("_")]
    public = {n for n in listed if inspect.isclass(getattr(engine, n))}
    assert public == set(names)
    assert (ROOT / "engine" / "py.typed").is_file()
    for name in names:
        found = getattr(engine, name)
        assert found.__doc__ and not found.__doc__.startswith(f"{name}("), (
            f"{name} has no docstring"
        )
        for method, function in inspect.getmembers(found, inspect.isfunction):
            if method.startswith("_") or function.__module__.partition(".")[0] != "engine":
                continue
            assert function.__doc__, f"{name}.{method} has no docstring"
            hints = typing.get_type_hints(function, include_extras=True)
            untyped = set(inspect.signature(function).parameters) - {*hints, "self", "cls"}
            assert "return" in hints and not untyped, f"{name}.{method}: {untyped}"


def test_names_come_when_they_are_asked_for():
    """To a program the surface looks the same before anything was imported and after."""
    code = (
        "import engine, sys, types; before = dir(engine); assert 'Engine' not in vars(engine); "
        "assert set(engine.__all__) < set(before); scope = {}; "
        "exec('from engine import *', scope); "
        "assert set(engine.__all__) < set(scope); assert engine.Engine is scope['Engine']; "
        "new = set(dir(engine)) - set(before); "
        "assert all(isinstance(vars(engine)[n], types.ModuleType) for n in new), new"
    )
    run(code)
    assert not hasattr(engine, "Motor")
    with pytest.raises(AttributeError, match="module 'engine' has no attribute 'Motor'"):
        _ = engine.Motor
    with pytest.raises(ImportError, match="cannot import name 'Motor' from 'engine'"):
        exec("from engine import Motor")


def test_reprs_say_what_a_thing_is():
    made = engine.Engine("tiny")
    (done,) = made.generate(["47+36?\n\n"], engine.SamplingParams(max_tokens=8, seed=1))
    for thing, beginning in (
        (made, "Engine('tiny-"),
        (made.tokenizer, "Tokenizer("),
        (done, "Completion(request_id="),
        (engine.AsyncEngine(made), "AsyncEngine(Engine("),
        (done.usage, "Usage("),
        (made.config, "EngineConfig("),
        (done.steps[0], "Step(index=0"),
    ):
        assert repr(thing).startswith(beginning)
        assert len(repr(thing)) < 900 and " object at 0x" not in repr(thing), repr(thing)


def test_a_bar_is_shown_where_it_is_wanted(capfd):
    """On standard error, for each model, whole at the end; without asking there is none."""
    engine.Engine("tiny")
    assert capfd.readouterr() == ("", "")
    engine.Engine("tiny", progress=True)
    out, err = capfd.readouterr()
    assert not out
    for role in ("small", "large"):
        assert re.search(rf"loading {role}: 100%\|.*(\d+)/\1 ", err), err


STATE = """
import logging, random, signal, threading
import numpy, torch
def state():
    return (
        torch.get_default_dtype(), torch.get_num_threads(), torch.get_num_interop_threads(),
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_rng_state().tolist(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        torch.get_default_device(), torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.mkldnn.enabled, torch.get_flush_denormal() if hasattr(
            torch, "get_flush_denormal") else None,
        [signal.getsignal(n) for n in signal.valid_signals()],
        random.getstate(), numpy.random.get_state()[1].tolist(), threading.active_count(),
        logging.getLogger().handlers, logging.getLogger().level, numpy.geterr(),
    )
before = state()
from engine import Engine, SamplingParams
assert state() == before, "import changed something"
made = Engine("tiny")
params = SamplingParams(max_tokens=16, temperature=1.0, logprobs=3)
made.generate(["47+36?\\n\\n"], params, "random:0.5")
list(made.stream("47+36?\\n\\n", params, "small"))
assert state() == before, "running changed something"
"""


def test_nothing_global_changes_and_nothing_is_printed():
    """Torch's settings, seeds, signals, threads, loggers; standard output and error."""
    done = run(STATE)
    assert not done.stdout and not done.stderr


def test_only_the_commands_print():
    for path in sorted((ROOT / "engine").rglob("*.py")):
        text = path.read_text()
        if path.name != "cli.py" and not text.startswith('"""``steer '):
            assert not re.search(r"^\s*print\(", text, re.MULTILINE), path
