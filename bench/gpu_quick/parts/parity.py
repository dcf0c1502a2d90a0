"""Part 3: small models of each family against transformers, with and without graphs."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.gpu_quick.scene import CRASH, NotRunError, PartFailedError, Scene, first_line
from bench.kernel_bench.card import card_lost

FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "qwen2 tied yarn")
_QUICK = ("qwen3",)
_TYPES = ("float32", "bfloat16")
_GUESSES = 3  # before each pass of the large model, which verifies them


def piece_names(quick: bool) -> list[str]:
    """Every family in every type."""
    return [f"{family}/{dtype}" for family in (_QUICK if quick else FAMILIES) for dtype in _TYPES]


def run(scene: Scene) -> None:
    """A row for each family, type and check; fails once all have run, or the card is lost."""
    if importlib.util.find_spec("transformers") is None:
        raise NotRunError("transformers is not installed: pip install transformers")
    torch.backends.cuda.matmul.allow_tf32 = False  # fp32 means fp32
    names, wrong = scene.pieces(*piece_names(scene.quick)), list[dict[str, Any]]()
    with scene.writer() as writer:
        for number, piece in enumerate(names, 1):
            with TemporaryDirectory() as folder:
                for row in _guarded(piece, Path(folder), scene.quick):
                    writer.write(row)
                    wrong += [row] if row["wrong"] is not None else []
            if wrong and card_lost():
                raise _failed(wrong, rest=names[number:])
    if wrong:
        raise _failed(wrong)


def _guarded(piece: str, folder: Path, quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of a piece; an error gives a row, too."""
    try:
        yield from _rows(piece, folder, quick)
    except Exception as error:
        trace = traceback.format_exc()
        print(trace, flush=True)
        family, dtype = piece.split("/")
        yield _row(family, dtype, CRASH, first_line(error)) | {"trace": trace}


def _rows(piece: str, folder: Path, quick: bool) -> Iterator[dict[str, Any]]:
    """Rows of the engine against transformers; in fp32 also against itself without graphs, and
    with guesses."""
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
        guessed = write(build(oracle, dtype, speculate=_GUESSES), scale)
        yield _row(family, dtype, "transformers, with guesses", first_wrong(guessed, oracle, dtype))


def _row(family: str, dtype: str, check: str, wrong: object | None) -> dict[str, Any]:
    said = None if wrong is None else str(wrong)
    return {"bench": "parity", "family": family, "dtype": dtype, "check": check, "wrong": said}


def _failed(wrong: list[dict[str, Any]], **detail: Any) -> PartFailedError:
    """All faults, then the traceback of the first error."""
    where = {name: wrong[0][name] for name in ("family", "check", "dtype")}
    told = [f"{r['family']}, {r['dtype']}, {r['check']}: {r['wrong']}" for r in wrong]
    traces = [row["trace"] for row in wrong if "trace" in row]
    return PartFailedError("\n".join([*told, *traces[:1]]), parity=where, **detail)
