"""After a failure of parity: the smallest set of switches and ops without which it holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.gpu_quick.agreement import (
    STEADY,
    Scale,
    Wrong,
    build,
    first_wrong,
    same_bits,
    scale_of,
    write,
    write_steadily,
)
from bench.gpu_quick.families import Oracle
from bench.gpu_quick.replaced import NAMES, replaced
from bench.gpu_quick.scene import CRASH, Scene, first_line
from bench.kernel_bench.card import card_lost

SWITCHES: dict[str, Any] = {
    "graphs": "off",
    "plan_ahead": "off",
    "overlap": False,
    "fused_head": False,
    "fused_sampling": False,
}
Trial = Callable[[Sequence[str], Sequence[str]], Wrong | None]


def run(scene: Scene) -> None:
    """A row with the verdict, which is in the result as well."""
    where = scene.parity
    with TemporaryDirectory() as folder:
        oracle = Oracle(where["family"], Path(folder))
        trial = _trial(oracle, where, scale_of(scene.quick))
        culprits, wrong, why = culprits_of(_told(trial, scene))
    named = ", ".join(culprits) or "none found"
    verdict = f"{where['family']}, {where['dtype']}: culprits: {named} ({why})"
    if wrong is not None:
        verdict += f"; first wrong: {wrong}"
    scene.detail["verdict"] = verdict
    with scene.writer() as writer:
        writer.write(
            {
                "bench": "bisect",
                **where,
                "culprits": culprits,
                "why": why,
                "wrong": None if wrong is None else str(wrong),
            }
        )
    print(verdict)


def _told(trial: Trial, scene: Scene) -> Trial:
    """Prints the result of each trial, so that a kill loses none."""

    def run(switches: Sequence[str], ops: Sequence[str]) -> Wrong | None:
        wrong = trial(switches, ops)
        with scene.writer() as writer:
            found = None if wrong is None else str(wrong)
            what = {"off": list(switches), "replaced": list(ops), "wrong": found}
            writer.write({"bench": "bisect trial", **what})
        print(f"off: {switches}, replaced: {ops}: {found or 'as it should be'}", flush=True)
        return wrong

    return run


def _trial(oracle: Oracle, where: dict[str, Any], scale: Scale) -> Trial:
    """A trial: runs with switches off and ops replaced, and returns what is then wrong."""
    dtype, bits = where["dtype"], where["check"] not in ("transformers", CRASH)
    if dtype == "bfloat16":
        oracle.rounded()

    def trial(switches: Sequence[str], ops: Sequence[str]) -> Wrong | None:
        settings, choice = {name: SWITCHES[name] for name in switches}, replaced(ops)
        if not bits:
            engine = build(oracle, dtype, choice, **settings)
            return first_wrong(write(engine, scale), oracle, dtype)
        settings |= STEADY
        ours = write_steadily(build(oracle, dtype, choice, **settings), scale)
        settings["graphs"] = "off"
        theirs = write_steadily(build(oracle, dtype, choice, **settings), scale)
        return same_bits(ours, theirs)

    def guarded(switches: Sequence[str], ops: Sequence[str]) -> Wrong | None:
        """Takes errors as wrong results. An error that loses the card ends the search."""
        try:
            return trial(switches, ops)
        except Exception as error:
            if card_lost():
                raise
            return Wrong(0, 0, "either", -1, math.nan, math.nan, first_line(error))

    return guarded


def culprits_of(trial: Trial) -> tuple[list[str], Wrong | None, str]:
    """The switches and ops to replace so that nothing is wrong; the first wrong element; a reason.

    Each member of a set that works is put back in turn, and stays in use if nothing is wrong then:
    no member of the remaining set can be left out.

    Args:
        trial: returns what is wrong with these switches off and these ops replaced by references.
    """
    wrong = trial([], [])
    if wrong is None:
        return [], None, "it held when it was tried again: it depends on chance"
    switches = list(SWITCHES)
    if trial(switches, []) is None:
        return _smallest(switches, lambda kept: trial(kept, [])), wrong, "switches turned off"
    # References wait for the device, which a recording forbids: graphs stay off from here on.
    if trial(switches, NAMES) is not None:
        return [], wrong, "it fails with every switch off and every op replaced as well"
    ops = _smallest(list(NAMES), lambda kept: trial(switches, kept))
    rest = [name for name in switches if name != "graphs"]
    others = _smallest(rest, lambda kept: trial(["graphs", *kept], ops))
    return [*ops, *others], wrong, "replaced by its PyTorch reference, graphs off"


def _smallest(names: list[str], trial: Callable[[list[str]], Wrong | None]) -> list[str]:
    """A smallest subset of ``names`` with which the trial finds nothing wrong, as with all of them.

    Halves are tried first: one culprit among twelve takes few trials.
    """
    if trial([]) is None:
        return []
    kept, size = list(names), max(1, len(names) // 2)
    while True:
        start = 0
        while start < len(kept):
            without = kept[:start] + kept[start + size :]
            if without != kept and trial(without) is None:
                kept = without
            else:
                start += size
        if size == 1:
            return kept
        size = max(1, size // 2)
