"""Which backend a device gets, and when."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from engine import Engine, EngineConfig, SamplingParams
from kernels import ops

WITHOUT_TRITON = """
import sys
from engine import Engine, EngineConfig, SamplingParams
engine = Engine("tiny", device="cpu", config=EngineConfig(max_sequences=2))
engine.generate(["1+2?"], SamplingParams(max_tokens=3), "small")
assert "triton" not in sys.modules
"""


def test_a_cpu_needs_no_triton():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_device_on_which_nothing_computes():
    with pytest.raises(ValueError, match="must be a CPU or a CUDA device, got meta"):
        ops.backend_for(torch.device("meta"))


def test_an_engine_asks_once_for_each_device_and_uses_what_it_gets():
    """The references alone write the text of the compiled kernels."""
    asked, operations = [], []

    class Watched(ops.ReferenceBackend):
        def silu_mul(self, gate_up):
            operations.append(len(gate_up))
            return super().silu_mul(gate_up)

    def choose(device):
        asked.append(device)
        return Watched()

    texts = []
    for backends in (None, choose):
        engine = Engine(
            "tiny", device="cpu", config=EngineConfig(max_sequences=4), backends=backends
        )
        params = SamplingParams(max_tokens=12, temperature=0.7, seed=1)
        done = engine.generate(["1+2?\n\n", "12*3?\n\n"], params, "random:0.5")
        texts.append([completion.token_ids for completion in done])
    assert asked == [torch.device("cpu")] and operations
    assert texts[0] == texts[1]
