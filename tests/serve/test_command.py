"""``steer serve``: its flags, what it refuses, and what other commands do not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli import build_parser, main
from engine.errors import SteerError
from engine.serve import command
from tests.serve.conftest import Running

ROOT = Path(__file__).parents[2]
PACKAGES = ("fastapi", "starlette", "uvicorn", "pydantic", "orjson", "prometheus_client", "uvloop")


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code that must not see what these tests have imported."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def settings_of(*arguments: str):  # type: ignore[no-untyped-def]
    options = build_parser().parse_args(["serve", *arguments])
    command._fill_in(options)
    return command._settings(options)


def test_generate_imports_none_of_its_packages():
    code = (
        "import sys; from engine.cli import main; "
        "main(['generate', '47+36?\\\\n\\\\n', '--max-tokens', '4']); "
        f"print([m for m in {PACKAGES} if m in sys.modules])"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_missing_packages_are_said_in_one_line():
    code = (
        "import sys; sys.modules['uvicorn'] = None; from engine.cli import main; "
        "sys.exit(main(['serve']))"
    )
    done = python(code)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "pip install 'steer-engine[serve]'" in line


def test_help_teaches(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for text in ("steer serve --model-pair tiny", "curl http://", "--api-key", "--cors-origin"):
        assert text in said
    assert "steer-engine[serve]" in said


def test_flags_become_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "keys"
    file.write_text("from-file\n\n  second  \n")
    monkeypatch.setenv("STEER_API_KEY", "from-variable")
    settings = settings_of(
        *("--model-pair", "tiny", "--served-model-name", "one", "--served-model-name", "two"),
        *("--api-key", "from-flag", "--api-key", "second", "--api-key-file", str(file)),
        *("--allowed-host", "a.org", "--cors-origin", "https://b.org", "--policy", "large"),
        *("--max-body-bytes", "1000", "--drain-timeout", "3", "--request-timeout", "9"),
        *("--metrics-compat", "vllm", "--host", "0.0.0.0"),
    )
    assert settings.names == ("one", "two") and settings.host == "0.0.0.0"
    assert settings.keys == ("from-flag", "second", "from-variable", "from-file")
    assert settings.hosts == ("a.org",) and settings.origins == ("https://b.org",)
    assert settings.policy == "large" and settings.max_body_bytes == 1000
    assert (settings.drain_timeout, settings.request_timeout) == (3.0, 9.0)
    assert settings.metrics_compat


def test_defaults(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("STEER_API_KEY", raising=False)
    settings = settings_of("--pair", "qwen-1.5b/qwen-32b")
    assert settings.names == ("qwen-1.5b/qwen-32b",) and settings.keys == ()
    assert settings.host == "127.0.0.1" and settings.max_body_bytes == 16 << 20
    options = build_parser().parse_args(["serve"])
    assert options.port == 8000 and options.pair == "tiny"
    flags = ("--max-waiting", "5", "--max-sequences", "4", "--max-context", "64")
    options = build_parser().parse_args(["serve", *flags, "--arena-tokens", "900"])
    command._fill_in(options)
    config = command._engine_config(options)
    assert (config.max_waiting, config.max_sequences) == (5, 4)
    assert (config.max_context, config.arena_tokens) == (64, 900)


def test_two_checkpoints_are_a_pair_of_their_own():
    """They come without a calibration, so that the default is the policy which needs none."""
    options = build_parser().parse_args(["serve", "--small", "a/one.gguf", "--large", "b/two"])
    command._fill_in(options)
    settings = command._settings(options)
    assert (options.pair, settings.names, settings.policy) == ("custom", ("one/two",), "verify")
    assert command._engine_config(options).max_drawn_rows > options.max_sequences
    for flags in ([], ["--small", "a", "--large", "b", "--calibration", "c"]):
        options = build_parser().parse_args(["serve", *flags])
        command._fill_in(options)
        assert command._settings(options).policy == "steer"


def test_files_of_keys(tmp_path: Path):
    with pytest.raises(SteerError, match="cannot be read"):
        settings_of("--api-key-file", str(tmp_path / "none"))
    empty = tmp_path / "empty"
    empty.write_text("\n")
    with pytest.raises(SteerError, match="has no key"):
        settings_of("--api-key-file", str(empty))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--served-model-name", "small"], "'small' is taken"),
        (["--api-key", "two words"], "API key"),
        (["--cors-origin", "b.org"], "--cors-origin"),
        (["--drain-timeout", "-1"], "drain_timeout"),
        (["--pair", "nothing"], "unknown pair"),
        (["--policy", "luck"], "unknown policy"),
        (["--pair", "qwen-1.5b/qwen-32b", "--policy", "steer"], "needs a --calibration FILE"),
        (["--max-sequences", "0"], "max_sequences"),
        (["--calibration", "no-such-file.json"], "no-such-file.json"),
        (["--host", "no.such.host.invalid"], "--host"),
        (["--device", "cpu", "--devices", "cpu,cpu"], "--devices"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], restored_logging: None
):
    assert main(["serve", "--port", "0", *arguments]) == 2
    *before, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line
    assert all(" info pair tiny: " in each for each in before)  # what was loaded


@pytest.mark.parametrize("port", ["-1", "65536", "http", ""])
def test_bad_ports(port: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["serve", f"--port={port}"])
    assert ended.value.code == 2 and "0 to 65535" in capsys.readouterr().err


def test_a_port_in_use(plain: Running, capsys: pytest.CaptureFixture[str], restored_logging: None):
    """Said before the weights are read."""
    assert main(["serve", "--port", str(plain.port)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot listen on port {plain.port} of 127.0.0.1")


def test_an_open_server_without_a_key_is_warned_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, restored_logging: None
):
    ends = ["serve", "--host", "0.0.0.0", "--port", "0", "--device", "none"]
    monkeypatch.delenv("STEER_API_KEY", raising=False)
    assert main(ends) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert "warning" in warning and "--api-key" in warning and error.startswith("error: ")
    monkeypatch.setenv("STEER_API_KEY", "k")
    assert main(ends) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
