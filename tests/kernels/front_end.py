"""Launches as a GPU specialises them, without one: each stops after the compiler's front end.

The interpreter knows no specialisation, and compiling ahead of time only those that it is told.
What a launch compiles depends on its arguments: a count of 1 is a constant there, and no tensor.
Run as a program, in a process without TRITON_INTERPRET.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.compiler
import triton.language as tl
from torch import Tensor
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime import JITFunction, driver

from engine import Engine, EngineConfig, SamplingParams
from engine.routing.policies import Call
from kernels import checks
from kernels.backends.triton import TritonBackend
from tests.kernels.launches import CASES

PARAMETERS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.9},
    {"temperature": 0.9, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8, "logprobs": 2},
    {"temperature": 0.0, "repetition_penalty": 1.4, "min_tokens": 2},
    {"temperature": 1.0, "logit_bias": {3: 2.0}, "min_p": 0.1, "n": 2},
)
LAUNCHES: set[Any] = set()


class Hopper:
    """A driver that has the card, and runs nothing."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def front_end(source: Any, target: Any = None, options: Any = None, **_: Any) -> Any:
    """What ``triton.compile`` does first."""
    backend, context = make_backend(target), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    chosen = backend.parse_options(dict(options))
    codegen, modules = backend.get_codegen_implementation(chosen), backend.get_module_map()
    return source.make_ir(target, chosen, codegen, modules, context)


def install() -> None:
    """From here on launches take tensors of the CPU; what is allocated holds ones."""
    triton.compiler.compile = front_end
    driver.set_active(Hopper())
    run = JITFunction.run

    def launch(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        LAUNCHES.add(id(run(self, *arguments, grid=grid, warmup=True, **options)))

    JITFunction.run = launch
    checks.interpreted = lambda kernel: True
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        setattr(owner, name, filled(getattr(owner, name)))


def filled(allocate: Any) -> Any:
    return lambda *sizes, **options: allocate(*sizes, **options).fill_(1)


@triton.jit
def _of_a_tensor(out, count):  # type: ignore[no-untyped-def]
    tl.store(out, count.to(tl.int64))


def a_constant_is_seen() -> bool:
    """Whether a launch that only works on counts above 1 is told from one."""
    out = torch.zeros(1, dtype=torch.int64)
    _of_a_tensor[(1,)](out, 2)
    try:
        _of_a_tensor[(1,)](out, 1)
    except triton.CompilationError:
        return True
    return False


def ticks() -> None:
    """Requests alone and together, on both models, drawn in every way."""
    config = EngineConfig(
        graphs="on", max_sequences=24, max_tick_tokens=128, plan_ahead="both", block_tokens=16
    )
    engine = Engine("tiny", dtype="bfloat16", device="cpu", config=config, backends=TritonBackend)
    places = Call(lambda boundary: ("small", "large")[boundary.position // 3 % 2], reads=True)
    rest = {"max_tokens": 9, "max_step_tokens": 3, "ignore_eos": True}
    for alone in PARAMETERS:
        engine.generate(["1+2?\n\n"], SamplingParams(**alone, **rest), places)
    for row in range(18):
        chosen = SamplingParams(**PARAMETERS[row % len(PARAMETERS)], **rest)
        engine.submit_samples(f"12+{row}?\n\n", chosen, places)
    while engine.scheduler.running or engine.scheduler.waiting:
        engine.step()


def main() -> None:
    """Raises what a launch on a GPU would raise."""
    install()
    assert a_constant_is_seen()
    for case in (make() for make in CASES.values()):
        case.run(**case.tensors)
    ticks()
    print(len(LAUNCHES))


if __name__ == "__main__":
    main()
