"""Part 3: small models of each family against transformers, with and without graphs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.gpu_quick.scene import NotRunError, PartFailedError, Scene

FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "qwen2 tied yarn")
_QUICK = ("qwen3",)
_TYPES = ("float32", "bfloat16")


def piece_names(quick: bool) -> list[str]:
    """Every family in every type."""
    return [f"{family}/{dtype}" for family in (_QUICK if quick else FAMILIES) for dtype in _TYPES]


def run(scene: Scene) -> None:
    """A row a family, type and check; stops at the first that is wrong."""
    if importlib.util.find_spec("transformers") is None:
        raise NotRunError("transformers is not installed: pip install transformers")
    torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means fp32
    with scene.writer() as writer:
        for piece in scene.pieces(*piece_names(scene.quick)):
            with TemporaryDirectory() as folder:
                for row in _rows(piece, Path(folder), scene.quick):
                    writer.write(row)
                    _check(row)


def _rows(piece: str, folder: Path, quick: bool) -> Iterator[dict[str, Any]]:
    """Against transformers as the engine runs; in fp32 against itself without graphs, too."""
    from bench.gpu_quick.agreement import (
        STEADY,
        build,
        check_schedule,
        first_wrong,
        same_bits,
        scale_of,
        write,
        write_steadily,
    )
    from bench.gpu_quick.families import Oracle

    family, dtype = piece.split("/")
    oracle, scale = Oracle(family, folder), scale_of(quick)
    done = write(build(oracle, dtype), scale)
    if dtype == "bfloat16":
        oracle.rounded()
    yield _row(family, dtype, "transformers", first_wrong(done, oracle, dtype))
    check_schedule(done)
    if dtype == "float32":
        recorded, eager = (
            write_steadily(build(oracle, dtype, graphs=graphs, **STEADY), scale)
            for graphs in ("on", "off")
        )
        yield _row(family, dtype, "graphs on = off", same_bits(recorded, eager))


def _row(family: str, dtype: str, check: str, wrong: object | None) -> dict[str, Any]:
    said = None if wrong is None else str(wrong)
    return {"bench": "parity", "family": family, "dtype": dtype, "check": check, "wrong": said}


def _check(row: dict[str, Any]) -> None:
    if row["wrong"] is None:
        return
    where = {name: row[name] for name in ("family", "check", "dtype")}
    message = f"{row['family']}, {row['dtype']}, {row['check']}: {row['wrong']}"
    raise PartFailedError(message, parity=where)
