"""Part 6: the kernels that take most of a tick's time, in graphs, without rivals."""

from __future__ import annotations

from dataclasses import replace

from bench.gpu_quick.scene import Scene
from bench.kernel_bench import gpu
from bench.kernel_bench.card import calibrate
from bench.kernel_bench.case import Case

OPS = ("confidence", "lm_head", "attention", "skinny_gemm", "packed_gemm")  # goals first
_QUICK_OPS = ("confidence",)
_KERNELS = {"attention": ("decode",), "packed_gemm": ("_int4",)}  # of an op with others: endings
_EXTENT = gpu.Extent(replays=20, alone=True)
_QUICK = gpu.Extent(replays=2, calls=1, alone=True)


def run(scene: Scene) -> None:
    """A row for each case as it is measured; a case that fails has a row with its error."""
    small = scene.quick or scene.rehearses
    card = calibrate(small)
    if small:  # no cold rows, which take many sets of arguments
        card = replace(card, l2_bytes=0)
    ops = scene.pieces(*(_QUICK_OPS if scene.quick else OPS))
    shapes, wanted = (scene.shapes[:1], _smallest) if scene.quick else (scene.shapes, _wanted)
    extent, rows = _QUICK if small else _EXTENT, []
    with scene.writer() as writer:
        for op in ops:  # both models per op, so that a run that is cut off has both models' goals
            for row in gpu.measure([op], shapes, card, extent, wanted):
                writer.write(row)
                rows.append(row)
    print(gpu.show(rows, card))
    failed = [f"{r['op']} {r['kernel']}: {r['error']}" for r in rows if "error" in r]
    if failed:
        raise RuntimeError(f"{len(failed)} cases failed, the first: {failed[0]}")


def _wanted(case: Case) -> bool:
    return case.rows <= max(_EXTENT.batches) and case.name.endswith(_KERNELS.get(case.op, ""))


def _smallest(case: Case) -> bool:
    return case.rows == 1 and case.name == "statistics"
