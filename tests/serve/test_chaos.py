"""A real server among clients that vanish, read slowly and ask badly: nothing of them stays."""

from __future__ import annotations

import os
import sys

import pytest

from bench.serve.chaos import Chaos
from bench.serve.served_process import ServedProcess
from bench.serve.soak import CONTEXT, FLAGS, soak

CLIENTS = int(os.environ.get("STEER_CHAOS_CLIENTS", "60"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_nothing_of_many_clients_stays():
    """Blocks, queue, streams, counts and memory, after a round to warm up and two others."""
    with ServedProcess(*FLAGS) as server:
        chaos = Chaos(server.port, CONTEXT - 64, seed=7)
        assert soak(server, chaos, CLIENTS, [3, 3, 3]) == []
        tally = chaos.tally
        assert tally.requests > 3 * CLIENTS
        assert tally.seen("left") > tally.requests / 5
        assert {"200", "400", "404", "429", "left"} <= {seen for _, seen in tally.outcomes}
        assert server.stop() == 0
        (first, *others) = server.written.splitlines()
    assert first.startswith("serving tiny at")
    assert not any("Traceback" in line or "error" in line for line in others)
