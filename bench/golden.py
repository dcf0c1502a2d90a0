"""A golden record: what the embedded pair writes, decides, costs and is calibrated to.

    python -m bench.golden --write DIR              make a record
    python -m bench.golden --compare DIR            the first differences from one; exit status 1
    python -m bench.golden --compare DIR --exact    numbers to the last bit: on the same machine

For changes that must not change anything: write a record before, compare after. Texts, tokens,
decisions and counts must be equal; numbers that a processor rounds in its own way may differ by one
part in a thousand unless --exact is given. Time, machine, versions and date are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench import flops
from bench.tasks import arithmetic
from engine import Completion, Engine, EngineConfig, SamplingParams, SteerError, cli
from engine.files import parse_json, read_text

Record = dict[str, Any]

POLICIES = (
    "small,large,random:0.5,threshold:max_prob:0.9,threshold:max_prob:0.9@probe:2,query:max_prob:0.5,"
    "cascade:max_prob:0.6,judge:-1,steer,steer-cost"
)
TRACED = ("steer", "judge--1", "cascade-max_prob-0.6")  # of the others the rows are enough
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": ("threshold:max_prob:0.9", {}),
    "drawn": ("random:0.5", {"temperature": 1.0, "seed": 7, "top_p": 0.9, "logprobs": 2}),
    "penalised": ("small", {"repetition_penalty": 1.3, "presence_penalty": 0.5}),
    "stopped": ("large", {"stop": ("15",), "min_tokens": 3}),
    "audited": ("audit:-5", {}),
}
# Fields of rows and files that differ in each run.
_TRANSIENT = {
    "seconds",
    "tokens_per_second",
    "machine",
    "cores",
    "threads",
    "commit",
    "date",
    "versions",
    "command",
    "timing",
    "created",
    "cpu",
    "python",
    "torch",
    "load",
}
_TOLERANCE = 1e-3
_SHOWN = 20  # differences
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.golden",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", type=Path, metavar="DIR", help="make a record in this folder")
    what.add_argument("--compare", type=Path, metavar="DIR", help="compare with this record")
    parser.add_argument("--exact", action="store_true", help="numbers must be equal to the bit")
    return parser


def record() -> Record:
    """The whole record, by part."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = _flops(folder)
        trace = folder / "traces" / "steer.jsonl"
        return {
            "flops": rows,
            "traces": {name: _lines(trace.with_stem(name)) for name in TRACED},
            "calibration": _plain(json.loads((folder / "calibration.json").read_text())),
            "requests": _requests(),
            "replay": _said("replay", str(trace), "--policy=steer:0.9", "--policy=entropy:0.5"),
            "calibrate": _calibrate(folder),
        }


def _flops(folder: Path) -> list[Any]:
    with contextlib.redirect_stdout(io.StringIO()):
        code = flops.main(
            [
                "--problems=24",
                f"--policies={POLICIES}",
                f"--json={folder / 'rows.jsonl'}",
                f"--save-traces={folder / 'traces'}",
                f"--save-calibration={folder / 'calibration.json'}",
            ]
        )
    if code:
        raise SteerError(f"bench.flops ended with {code}")
    return _lines(folder / "rows.jsonl")


def _requests() -> dict[str, Any]:
    """Texts, tokens and steps of requests that use what ``bench.flops`` does not."""
    engine = Engine("tiny", config=EngineConfig(max_sequences=4))
    prompts = [p.prompt for p in arithmetic.problems("test", 6, seed=3)]
    completions = {}
    for name, (policy, settings) in REQUESTS.items():
        done = engine.generate(
            prompts, SamplingParams(max_tokens=48, **{"seed": 1} | settings), policy
        )
        completions[name] = [_completion(each) for each in done]
    return completions


def _completion(done: Completion) -> dict[str, Any]:
    kept = ("text", "token_ids", "finish_reason", "seed", "sample")
    return {
        **{name: getattr(done, name) for name in kept},
        "steps": [asdict(step) for step in done.steps],
        "logprobs": [asdict(each) for each in done.logprobs or ()],
        "retracted": [asdict(each) for each in done.retracted],
        "usage": done.usage.to_json(),
    }


def _calibrate(folder: Path) -> dict[str, Any]:
    prompts, calibration = folder / "prompts.jsonl", folder / "made.json"
    rows = [
        {"prompt": p.prompt, "answer": p.answer} for p in arithmetic.problems("test", 40, seed=5)
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = _said("calibrate", str(prompts), f"--output={calibration}", "--max-tokens=64")
    return {"said": said, "file": _plain(json.loads(calibration.read_text()))}


def _said(*arguments: str) -> list[str]:
    """The lines that ``steer`` prints, without the names of folders."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = cli.main(list(arguments))
    if code:
        raise SteerError(f"steer {arguments[0]} ended with {code}")
    return re.sub(r"\S*/(?=\S+\.(json|png))", "", out.getvalue()).splitlines()


def _lines(path: Path) -> list[Any]:
    return [_plain(json.loads(line)) for line in path.read_text().splitlines()]


def _plain(value: Any) -> Any:
    """The value as JSON reads it, without the fields that differ in each run."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in _TRANSIENT}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def differences(before: Any, after: Any, exact: bool, where: str = "") -> Iterator[str]:
    """Each place where two records differ, in words."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            place = f"{where}.{key}" if where else str(key)
            if key not in before or key not in after:
                yield f"{place}: {'missing before' if key not in before else 'missing now'}"
            else:
                yield from differences(before[key], after[key], exact, place)
    elif isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            yield f"{where}: {len(before)} entries before, {len(after)} now"
        for index, (one, two) in enumerate(zip(before, after, strict=False)):
            yield from differences(one, two, exact, f"{where}[{index}]")
    elif not (before == after or (not exact and _near(before, after))):
        yield f"{where}: {before!r} before, {after!r} now"


def _near(before: Any, after: Any) -> bool:
    if isinstance(before, float) and isinstance(after, int | float):
        return math.isclose(before, after, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    if not (isinstance(before, str) and isinstance(after, str)):
        return False
    numbers = zip(_NUMBER.findall(before), _NUMBER.findall(after), strict=False)
    same_words = _NUMBER.sub("#", before) == _NUMBER.sub("#", after)
    # Printed numbers are rounded: the last digit may go either way.
    return same_words and all(math.isclose(float(a), float(b), abs_tol=2e-3) for a, b in numbers)


def _write(folder: Path, record: Record) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, content in record.items():
        (folder / f"{part}.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")


def _read(folder: Path) -> Record:
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise SteerError(f"{folder}: no record there; make one with --write {folder}")
    try:
        return {path.stem: parse_json(read_text(path, "record")) for path in paths}
    except ValueError as error:
        raise SteerError(f"{folder}: not a record: {error}") from None


def compare(folder: Path, exact: bool, made: Callable[[], Record] = record) -> list[str]:
    """All differences of a record made now from one in a folder; SteerError without one there."""
    before = _read(folder)
    now = json.loads(json.dumps(made()))
    return list(differences(before, now, exact))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 where something differs, 2 on bad input."""
    options = build_parser().parse_args(arguments)
    try:
        if options.write:
            _write(options.write, record())
            return 0
        lines = compare(options.compare, options.exact)
    except (SteerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines[:_SHOWN]) or "equal")
    if len(lines) > _SHOWN:
        print(f"and {len(lines) - _SHOWN} more")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
