"""A server that is killed in the middle of answers, and the one that takes its place."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from bench.serve.served_process import ServedProcess
from bench.serve.soak import LIMITS

ROOT = Path(__file__).parents[2]
ASKED = {"prompt": "47+36*7-15?\n\n", "max_tokens": 200, "ignore_eos": True, "n": 8}


def test_a_killed_server_is_replaced_on_its_port():
    """Its clients see that their answers are not whole; the next one serves at once."""
    with ServedProcess(*LIMITS) as first:
        url, port = f"http://127.0.0.1:{first.port}", first.port
        with httpx2.Client(base_url=url, timeout=30) as client, ExitStack() as stack:
            path, body = "/v1/completions", {**ASKED, "stream": True}
            opened = [stack.enter_context(client.stream("POST", path, json=body)) for _ in range(3)]
            frames = [response.iter_lines() for response in opened]
            for each in frames:
                assert "text_completion" in next(each)
            first.kill()
            broken = 0
            for each in frames:
                try:
                    assert "data: [DONE]" in list(each), "an answer that was cut off looks whole"
                except httpx2.TransportError:
                    broken += 1
            assert broken, "all answers ended before the server was killed"
            with pytest.raises(httpx2.TransportError):
                client.get("/health")
    with ServedProcess(*LIMITS, port=port) as second:
        assert second.port == port
        answer = httpx2.post(f"{url}/v1/completions", json={**ASKED, "n": 1}, timeout=30)
        assert answer.json()["usage"]["completion_tokens"] == 200


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="limits are read from /proc")
def test_a_server_may_have_more_connections_than_programs_get_unasked():
    code = (
        "import resource, runpy, sys; most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, most)); sys.argv[1:] = ['1']; "
        "runpy.run_module('tests.serve.stand_in_process', run_name='__main__')"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr and "serving" in process.stderr.readline()
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        process.kill()
    soft, hard = re.search(r"Max open files +(\S+) +(\S+)", limits).groups()  # type: ignore[union-attr]
    assert soft == hard != "100"
