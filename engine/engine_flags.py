"""The flags of a command that say which pair runs, and where."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine.config import EngineConfig
from engine.config.pairs import NAMED_PAIRS
from engine.engine import Engine
from engine.errors import SteerError


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--pair, its weights, its number format and its devices."""
    add = parser.add_argument
    add(
        "--pair",
        "--model-pair",
        default="tiny",
        help="one of: " + ", ".join(NAMED_PAIRS) + " (default: tiny)",
    )
    add("--small", type=Path, metavar="PATH", help="the small model: a folder or a GGUF file")
    add("--large", type=Path, metavar="PATH", help="the large model, likewise")
    add(
        "--retokenize",
        action="store_true",
        help="take a pair whose tokenizers differ: text crosses at step boundaries, encoded again",
    )
    add(
        "--dtype",
        default="auto",
        help="of weights and KV: float32, bfloat16, or auto, bfloat16 on a GPU and float32 on a "
        "CPU, which doubles a bfloat16 checkpoint's memory and reads (default: auto)",
    )
    add("--device", help="cpu, cuda, cuda:N or auto, a GPU if any (default)")
    add(
        "--devices",
        metavar="SMALL,LARGE",
        help="one for each model instead: both CPUs or both GPUs, as in cuda:0,cuda:1",
    )


def load(options: argparse.Namespace, config: EngineConfig) -> Engine:
    """The engine of the flags. A terminal shows a bar while weights are read.

    Raises:
        SteerError: as ``Engine`` does, or on flags that do not go together.
    """
    return Engine(
        options.pair,
        small=options.small,
        large=options.large,
        config=config,
        dtype=options.dtype,
        device=options.device or "auto",
        devices=_devices(options),
        progress=sys.stderr.isatty() and options.pair != "tiny",
    )


def _devices(options: argparse.Namespace) -> list[str] | None:
    """The device names of --devices; None without the flag."""
    if options.devices is None:
        return None
    if options.device is not None:
        raise SteerError("--devices names both models' devices: leave --device out")
    return [name.strip() for name in options.devices.split(",")]
