"""How long until the engine is ready? Seconds and memory of the import and of loading a pair.

    python -m bench.startup [--small DIR --large DIR] [--dtype bfloat16] [--runs 5] [--json FILE]

Each run is a process of its own. ``import engine`` imports little; the first use of ``Engine``
imports Torch, which is timed separately. ``cpu`` is processor time, which a busy machine stretches
less. Loading is warm: the files were read once before. Memory is the process's peak minus its
memory before, as a multiple of the weights; mapped pages count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from bench.rows import RowWriter
from bench.table import render
from engine import SteerError

_IMPORT = """
import json, time
begin = time.perf_counter()
import engine
end = time.perf_counter()
print(json.dumps({"import": end - begin, "cpu": time.process_time()}))
"""
_IMPORT_ENGINE = """
import json, time
begin = time.perf_counter()
import torch
middle = time.perf_counter()
from engine import Engine
end = time.perf_counter()
print(json.dumps({"torch": middle - begin, "import": end - begin, "cpu": time.process_time()}))
"""
_LOAD = """
import json, re, sys, time
from pathlib import Path
import torch
from engine.device.devices import DTYPES
from engine.models.checkpoint import load_config, load_weights
from engine.models.decoder import Decoder
from engine.text.tokenizer import Tokenizer
from kernels import ops

def bytes_of(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

folder, dtype = Path(sys.argv[1]), DTYPES[sys.argv[2]]
begin, cpu = time.perf_counter(), time.process_time()
tokenizer = Tokenizer(folder)
middle, before = time.perf_counter(), bytes_of("VmRSS")
config = load_config(folder)
backend = ops.backend_for(torch.device("cpu"))
decoder = Decoder(config, load_weights(folder, config, dtype), 16, backend)
end = time.perf_counter()
print(json.dumps({
    "cpu": time.process_time() - cpu,
    "tokenizer": middle - begin, "weights": end - middle, "load": end - begin,
    "peak_over_weights": (bytes_of("VmHWM") - before) / decoder.bytes, "bytes": decoder.bytes,
}))
"""


def timed(code: str, *arguments: str) -> dict[str, float]:
    """The measurements of a fresh interpreter. SteerError with its last line if it fails."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SteerError((done.stderr.strip().splitlines() or ["no output"])[-1])
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def measure(what: str, code: str, runs: int, *arguments: str) -> dict[str, Any]:
    """Medians and extremes of several runs, after one that only warms the file cache."""
    timed(code, *arguments)
    rows = [timed(code, *arguments) for _ in range(runs)]
    row: dict[str, Any] = {"bench": "startup", "what": what, "runs": runs}
    for name in rows[0]:
        values = [r[name] for r in rows]
        row[name] = {"median": median(values), "least": min(values), "most": max(values)}
    return row


def run(options: argparse.Namespace) -> int:
    """Measure, print, write rows."""
    rows = [
        measure("import engine", _IMPORT, options.runs),
        measure("from engine import Engine", _IMPORT_ENGINE, options.runs),
    ]
    for role in ("small", "large"):
        folder = getattr(options, role)
        if folder:
            row = measure(f"load {role}", _LOAD, options.runs, str(folder), options.dtype)
            rows.append(row | {"folder": folder.name, "dtype": options.dtype})
    with RowWriter(options.json) as writer:
        for row in rows:
            writer.write(row)
    cells = [
        [row["what"], name, *(f"{value[part]:.3f}" for part in ("median", "least", "most"))]
        for row in rows
        for name, value in row.items()
        if isinstance(value, dict) and name != "bytes"
    ]
    print(render(["what", "seconds or ratio", "median", "least", "most"], cells))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, 2 on bad input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--small", type=Path, metavar="DIR", help="a checkpoint to load")
    parser.add_argument("--large", type=Path, metavar="DIR", help="another one")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights (default: bfloat16)")
    parser.add_argument("--runs", type=int, default=5, help="of each (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write result rows")
    try:
        return run(parser.parse_args(arguments))
    except (SteerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
