"""The command line of ``python -m bench.gpu_quick``."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from bench.gpu_quick.flow import Flow, Request
from bench.gpu_quick.output import open_folder
from bench.gpu_quick.plan import SECONDS, STAGES, chosen, known
from bench.gpu_quick.watch import NoCardError
from engine.errors import SteerError

HELP = """A few minutes on a GPU, turned into proof and rows.

    python -m bench.gpu_quick --stage prove     are results right? parts 1 to 3 and one decode row
    python -m bench.gpu_quick --stage time      how fast? parts 4 to 7
    python -m bench.gpu_quick --stage all       both; times are taken only if the proof holds

  1    the card: bandwidth of a copy and a read, one product, versions       10 s
  2    every op against fp64, at a real and an odd shape                     60 s
  3    small models of each family against transformers                      90 s
  row  one decode row of each model                                          40 s
  4    bench.decode: 1, 8 and 64 sequences, in turn and ahead                90 s
  5    bench.handoff, bench.overlap, bench.pair                             120 s
  6    bench.kernels: confidence, LM head, decode attention, skinny products 80 s
  7    soak: random requests, aborts and handoffs       what is left, 60 s or more

Each part has a process of its own, but for 4 and 5, which share the models. A part is killed at
its limit. Rows are in DIR/rows.jsonl the moment they exist; what parts print is in DIR/log.txt.

Exit status: 0; 1 if a part failed or there is no GPU; 2 on bad input; 130 when interrupted.
"""
_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SteerError(message)


def parse(arguments: Sequence[str] | None) -> Request:
    """SteerError in one line on anything that is wrong; makes the output folder."""
    parser = _Parser(
        prog="python -m bench.gpu_quick",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--stage", default="all", help=f"one of {', '.join(STAGES)} (default: %(default)s)")
    add("--parts", metavar="LIST", help=f"only these of the stage: {known()}")
    add(
        "--out",
        type=Path,
        default=Path("out/gpu-quick"),
        metavar="DIR",
        help="where rows, log and summary are added (default: %(default)s)",
    )
    told = ", ".join(f"{seconds:g} for {stage}" for stage, seconds in SECONDS.items())
    add("--seconds", metavar="N", help=f"for everything (default: {told})")
    add("--quick", action="store_true", help="the smallest sizes, to see that it works")
    given = parser.parse_args(arguments)
    keys = [key.strip() for key in given.parts.split(",")] if given.parts is not None else None
    parts = tuple(chosen(given.stage, keys, given.quick))
    seconds = SECONDS[given.stage] if given.seconds is None else _seconds(given.seconds)
    if seconds < parts[0].limit:
        raise SteerError(
            f"--seconds {seconds:g}: too short for part {parts[0].key}, which may take "
            f"{parts[0].limit:g}; give at least that"
        )
    return Request(given.stage, parts, open_folder(given.out), seconds, given.quick)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise SteerError(f"--seconds: expected a number of seconds, got {text!r}")
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 if a part failed or there is no GPU; 2 on bad input; 130 interrupted."""
    try:
        return Flow(parse(arguments)).run()
    except SteerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NoCardError:
        print("error: PyTorch sees no NVIDIA GPU here, so nothing was run", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: rows that were finished are written", file=sys.stderr)
        return _INTERRUPTED
