"""How close are the kernels to the least that they could cost?

    python -m bench.kernels [--op OP] [--pair PAIR] [--json FILE] [--quick]
    python -m bench.kernels --aot

On a GPU it times every kernel at the shapes of a pair's models, inside graphs, with warm and cold
L2, next to torch, torch.compile and those of FlashInfer, flash-attn, Liger-Kernel and vLLM that are
installed, against the roofline as measured on that card. A rival that fails is left out, with a
line; a kernel of ours leaves a row with its error. The run stops only if the card no longer
answers.

Without one, and with --aot, it compiles every kernel at the shapes of the models of all named pairs
ahead of time for sm_90, which needs no GPU, and checks the result against the kernels' limits:
spills, registers, 16-byte loads (one is enough; the share of bytes loaded that way is printed),
instructions per element. Without --aot it then times the references on the CPU.

Exit status: 0; 1 if a limit is broken or a kernel of ours fails, a line each; 2 on bad input.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.rows import RowWriter
from engine.errors import SteerError
from engine.files import check_output
from kernels.aot.registry import OPS

if TYPE_CHECKING:  # what is imported later reads whether Triton's interpreter is on
    from bench.kernel_bench.card import Card
    from bench.kernel_bench.gpu import Extent
    from kernels.aot.variant import ModelShape

QUICK_PAIR = "qwen-1.5b/qwen-32b"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--op", help=f"one of {', '.join(OPS)} (default: all)")
    add("--pair", help=f"whose shapes (default: all to compile, {QUICK_PAIR} to time)")
    add("--json", type=Path, metavar="FILE", help="write a result row a line")
    add("--aot", action="store_true", help="only compile and check, also where there is a GPU")
    add("--no-rivals", action="store_true", help="on a GPU, time our kernels alone")
    add("--quick", action="store_true", help=f"only the shapes of {QUICK_PAIR}, fewer repeats")
    return parser.parse_args(arguments)


def _chosen(options: argparse.Namespace) -> list[str]:
    if options.op and options.op not in OPS:
        raise SteerError(f"unknown op {options.op!r}; known: {', '.join(OPS)}")
    return [options.op] if options.op else list(OPS)


def check(ops: Sequence[str], options: argparse.Namespace, writer: RowWriter) -> int:
    """Compile ahead of time; 1 if a limit is broken."""
    from bench.kernel_bench import aot

    pair = options.pair or (QUICK_PAIR if options.quick else None)
    rows = aot.check_models(ops, aot.model_shapes([pair] if pair else []))
    for row in rows:
        writer.write(row)
    print(aot.show(rows))
    broken = aot.failures(rows)
    for line in broken:
        print(f"broken limit: {line}", file=sys.stderr)
    return 1 if broken else 0


def time_references(ops: Sequence[str], options: argparse.Namespace, writer: RowWriter) -> None:
    """The references on the CPU."""
    from bench.kernel_bench import reference

    rows = reference.time_references(ops, 10 if options.quick else 50)
    for row in rows:
        writer.write(row)
    print(f"\n{reference.show(rows)}")


def time_kernels(
    ops: Sequence[str], shapes: Sequence[ModelShape], card: Card, extent: Extent, writer: RowWriter
) -> int:
    """The kernels on the GPU; 1 if one of ours failed, or the card did for good."""
    from bench.kernel_bench import gpu
    from bench.kernel_bench.card import CardLostError

    rows, code = [], 0
    try:
        for row in gpu.measure(ops, shapes, card, extent):
            writer.write(row)
            rows.append(row)
    except CardLostError as error:
        print(f"stopped: {error}", file=sys.stderr)
        code = 1
    print(gpu.show(rows, card))
    return 1 if any("error" in row for row in rows) else code


def _time_on_card(ops: Sequence[str], options: argparse.Namespace, writer: RowWriter) -> int:
    from bench.kernel_bench import aot, gpu
    from bench.kernel_bench.card import calibrate

    shapes = aot.model_shapes([options.pair or QUICK_PAIR])
    extent = gpu.Extent(20 if options.quick else 100, alone=options.no_rivals)
    return time_kernels(ops, shapes, calibrate(), extent, writer)


def _compiled_again(arguments: Sequence[str]) -> int:
    """The same command without Triton's interpreter, which is chosen when kernels are imported."""
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.kernels", *arguments]
    return subprocess.run(command, env=clean, check=False).returncode


def run(options: argparse.Namespace) -> int:
    """Time on a GPU, or compile and time the references."""
    import torch

    ops = _chosen(options)
    check_output(options.json, "rows")
    with RowWriter(options.json) as writer:
        if torch.cuda.is_available() and not options.aot:
            return _time_on_card(ops, options, writer)
        code = check(ops, options, writer)
        if not options.aot:
            time_references(ops, options, writer)
    return code


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, 1 for a broken limit or a failed kernel, 2 on bad input."""
    options = parse(arguments)
    if "TRITON_INTERPRET" in os.environ:
        return _compiled_again(sys.argv[1:] if arguments is None else arguments)
    try:
        return run(options)
    except (SteerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
