"""The distribution, its names, and its neighbours."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(
    *command: str, cwd: Path = ROOT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=env)
    assert result.returncode == 0, result.stderr
    return result


def test_transformers_lives_beside_us():
    """It probes a top-level package called ``kernels``: ours must not be taken for another."""
    code = (
        "import kernels, transformers; from transformers import Qwen2ForCausalLM; "
        "assert not hasattr(kernels, '__version__'); print(kernels.__file__)"
    )
    assert str(ROOT) in run(sys.executable, "-c", code).stdout


def test_the_version_stays_in_the_safe_range():
    assert metadata.version("steer-engine").startswith("0.1.")


SERVE = ("fastapi", "starlette", "uvicorn", "pydantic", "orjson", "prometheus_client")
HEAVY = ("torch", "triton", "matplotlib", "transformers", "jinja2", *SERVE)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import engine", []),
        ("from engine import SamplingParams, SteerError, EngineConfig", []),
        ("from engine import Engine, AsyncEngine", ["torch"]),
    ],
)
def test_import_is_light(line: str, expected: list[str]):
    """The package alone brings nothing; neither Triton nor plots are needed to run the engine."""
    code = f"import sys; {line}; print([m for m in {HEAVY} if m in sys.modules])"
    assert run(sys.executable, "-c", code).stdout.strip() == str(expected)


GATES = """
import importlib, pkgutil, sys
import torch
import kernels
from kernels import ops
def gates():
    return [name for name in sys.modules if name.startswith("kernels.aot")]
backend = ops.backend_for(torch.device("cpu"))
backend.rms_norm(torch.ones(2, 8), torch.ones(8), 1e-6)
backend.lm_head(torch.ones(2, 8), torch.ones(6, 8), 6, keep=True)
print(gates())
for module in pkgutil.iter_modules(kernels.__path__, "kernels."):
    if module.name != "kernels.aot":
        importlib.import_module(module.name)
print("kernels.packed_gemm" in sys.modules, gates())
"""


def test_what_runs_imports_no_gates():
    """Neither ops on a CPU nor any kernel: ``kernels.aot`` imports them, never the other way."""
    assert run(sys.executable, "-c", GATES).stdout.splitlines() == ["[]", "True []"]


def test_a_wheel_works_from_any_folder(tmp_path: Path):
    """It carries the extension and the weights, and is installed where there is no compiler; the
    benchmark runs where there is no checkout."""
    wheels = tmp_path / "wheels"
    build = ("wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(ROOT))
    run(sys.executable, "-m", "pip", *build)
    (wheel,) = wheels.glob("steer_engine-0.1.*.whl")
    site = tmp_path / "site"
    bare = {"PATH": str(tmp_path / "no compiler"), "CC": "false", "CXX": "false"}
    install = ("install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    run(sys.executable, "-m", "pip", *install, env=bare)
    assert (site / "engine" / "py.typed").is_file() and (site / "engine" / "_core.pyi").is_file()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import engine; "
        f"assert engine.__file__.startswith({str(site)!r}); "
        "from bench.flops import main; priced = main(['--model-pair', 'qwen-1.5b/qwen-32b']); "
        "from bench.simulate import main as simulate; "
        "simulated = simulate(['--requests', '2', '--concurrency', '1']); "
        "sys.exit(priced or simulated or main(['--problems', '5', '--policies', 'steer']))"
    )
    out = run(sys.executable, "-P", "-c", code, cwd=elsewhere).stdout
    assert "Nothing was run" in out and "STEER minus large" in out
    assert "Simulated, not measured" in out


def test_the_source_archive_is_complete():
    """What a build from it needs is listed: the core's sources and the weights."""
    code = (
        "from setuptools.build_meta import build_sdist; import sys, tarfile; "
        "folder = sys.argv[1]; name = build_sdist(folder); "
        "print(*tarfile.open(folder + '/' + name).getnames(), sep='\\n')"
    )
    with tempfile.TemporaryDirectory() as folder:
        names = run(sys.executable, "-c", code, folder).stdout
    for wanted in (
        "csrc/schedule/tick.cpp",
        "csrc/schedule/scheduler.h",
        "CMakeLists.txt",
        "engine/tiny/trace.jsonl",
        "engine/tiny/speculate-trace.jsonl",
        "engine/tiny/large/model.safetensors",
    ):
        assert wanted in names, wanted


def test_the_command_explains_itself():
    steer = str(Path(sys.executable).parent / "steer")
    assert "small and a large" in run(steer, "--help").stdout
    assert "qwen-1.5b/qwen-32b" in run(steer, "pairs").stdout
    out = run(steer, "generate", "47+36*7-15?\\n\\n").stdout
    assert "47+36" in out and "posterior" in out and "-- stop" in out


def test_the_command_refuses_in_one_line():
    steer = str(Path(sys.executable).parent / "steer")
    result = subprocess.run(
        [steer, "generate", "47+1?", "--policy", "luck"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: unknown policy 'luck'") and not result.stdout
