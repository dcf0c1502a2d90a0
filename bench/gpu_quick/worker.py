"""The process of a part, or of some that share one: ``python -m bench.gpu_quick.worker``.

The run itself starts it. It writes its events to events.jsonl, a line each, so that a kill loses
none of them.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.gpu_quick.child import die_with_parent
from bench.gpu_quick.output import tell
from bench.gpu_quick.parts import MODULES
from bench.gpu_quick.result import FAILED, NOT_RUN, PASSED
from bench.gpu_quick.scene import CRASH, NotRunError, PartFailedError, Scene, first_line
from bench.gpu_quick.watch import NO_CARD

_BEFORE = 1.0  # seconds before a part is killed at which it dumps its stack


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_quick.worker")
    add = parser.add_argument
    add("--parts", required=True)
    add("--limits", required=True)
    add("--out", type=Path, required=True)
    add("--quick", action="store_true")
    add("--rehearse", action="store_true")
    add("--only", default="")
    add("--ahead-of", default="")
    add("--parity", default="{}")
    add("--pair", default="")
    return parser.parse_args(arguments)


def function_of(key: str) -> Callable[[Scene], None]:
    """The function that runs a part."""
    found: Callable[[Scene], None] = import_module(f"bench.gpu_quick.parts.{MODULES[key]}").run
    return found


def run_part(key: str, scene: Scene) -> dict[str, Any]:
    """Run a part; returns its result."""
    try:
        function_of(key)(scene)
    except NotRunError as reason:
        return {"state": NOT_RUN, "reason": str(reason)}
    except PartFailedError as error:
        scene.detail |= error.detail
        return {"state": FAILED, "reason": first_line(error), "trace": str(error)}
    except Exception as error:  # whatever a part raises is its result
        return {"state": FAILED, "reason": first_line(error), "trace": traceback.format_exc()}
    return {"state": PASSED}


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0; 1 after a part that failed; NO_CARD if PyTorch sees no GPU."""
    options = parse(arguments)
    die_with_parent()
    faulthandler.enable()  # a crash says where
    parity = json.loads(options.parity)
    if parity.get("check") == CRASH:  # waits for each launch, so that the right one is named
        os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
    import torch

    if not torch.cuda.is_available():
        return NO_CARD
    # Starting the driver can take seconds, which should not count for any part.
    torch.zeros(1, device="cuda").add_(1).cpu()
    scene = Scene(
        options.out,
        options.quick,
        options.rehearse,
        only=_names(options.only),
        ahead_of=_names(options.ahead_of),
        parity=parity,
        given_pair=options.pair,
    )
    limits = map(float, options.limits.split(","))
    return _run_all(scene, list(zip(options.parts.split(","), limits, strict=True)))


def _run_all(scene: Scene, parts: Sequence[tuple[str, float]]) -> int:
    """Run parts, each with its limit in seconds, up to the first that fails: see ``main``."""
    from bench.gpu_quick.compiled import counted

    with counted() as compiled:
        for key, limit in parts:
            print(f"== part {key}", flush=True)
            if not scene.rehearses:
                tell(scene.folder, event="begin", part=key)
                faulthandler.dump_traceback_later(max(0.1, limit - _BEFORE))
            scene.seconds, began = limit, time.monotonic()
            found = run_part(key, scene)
            faulthandler.cancel_dump_traceback_later()
            found |= {"seconds": round(time.monotonic() - began, 2)}
            _end(key, scene, found, compiled.take())
            if found["state"] == FAILED:
                return 1
    return 0


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _end(key: str, scene: Scene, found: dict[str, Any], compiled: dict[str, Any]) -> None:
    """Write the result of a part as an event."""
    if "trace" in found:
        print(found["trace"], flush=True)
    if scene.rehearses:
        what = {"part": key, "only": list(scene.only), "state": found["state"]}
        tell(scene.folder, event="rehearsed", **what, **compiled)
        return
    detail = {"compiled": compiled, **scene.detail}
    scene.detail = {}
    tell(scene.folder, event="end", part=key, detail=detail, **found)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # after an error on the card a clean exit may never end
