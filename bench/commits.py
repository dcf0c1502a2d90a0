"""Is this commit slower than that one? Both are built, and measured in turn, in one run.

    python -m bench.commits BEFORE [AFTER] [--rounds 5] [--json FILE]
    make bench-commits BEFORE=main~10

Machines are noisy, so only what runs side by side can be compared: each round measures both
commits, the order alternates, and a ratio is that of one round. What is measured:

  core    python -m bench.scheduler: microseconds of a plan and its commit, without any model
  engine  microseconds of processor time for each token of the embedded pair, 64 prompts at once
          with a threshold policy: what Python, the core and the CPU kernels take together

A ratio above 1 says that AFTER takes longer. AFTER is the checkout's last commit by default; what
is not committed is not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from bench.evaluate import task_tests
from bench.rows import RowWriter
from bench.table import render
from engine import SteerError

# Runs in each commit's own tree, so it uses public names only.
_ENGINE = """
import json, sys, time
from engine import Engine, SamplingParams
prompts, policy = json.load(sys.stdin)
engine, params = Engine("tiny", device="cpu"), SamplingParams(max_tokens=96)
engine.generate(prompts, params, policy)
begun = time.process_time()
for _ in range(4):
    answers = engine.generate(prompts, params, policy)
taken = time.process_time() - begun
print(1e6 * taken / 4 / sum(len(answer.token_ids) for answer in answers))
"""
_PROMPTS, _POLICY = 64, "threshold:max_prob:0.9"
Row = dict[str, Any]
Times = dict[str, float]  # microseconds by what was measured


@dataclass(frozen=True)
class Tree:
    """A commit, unpacked and built in a folder of its own."""

    commit: str
    folder: Path

    @classmethod
    def build(cls, commit: str, folder: Path) -> Tree:
        """SteerError if there is no such commit, or it does not build."""
        folder.mkdir()
        archive = _git("archive", commit)
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if built.returncode:
            raise SteerError(f"{commit} does not build: {built.stderr.strip()[-400:]}")
        return cls(_git("rev-parse", "--short", commit).decode().strip(), folder)

    def times(self, sequences: str, ticks: int) -> Times:
        """Measure once."""
        rows = self.folder / "scheduler.jsonl"
        rows.unlink(missing_ok=True)
        self._python(
            "-m",
            "bench.scheduler",
            "--sequences",
            sequences,
            "--ticks",
            str(ticks),
            "--json",
            str(rows),
        )
        times: Times = {}
        for row in map(json.loads, rows.read_text().splitlines()):
            taken = row["plan_us"] + row["commit_us"]
            times[f"core, {row['workload']}, {row['sequences']} sequences"] = taken
        problems = task_tests("test", _PROMPTS).problems
        said = json.dumps([[problem.prompt for problem in problems], _POLICY])
        times["engine, a token"] = float(self._python("-c", _ENGINE, said=said))
        return times

    def _python(self, *command: str, said: str = "") -> str:
        path = {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=os.environ | path,
            input=said,
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            raise SteerError(f"{self.commit}: {' '.join(command)[:60]}: {ran.stderr[-400:]}")
        return ran.stdout


def _git(*command: str) -> bytes:
    root = Path(__file__).parents[1]
    try:
        ran = subprocess.run(["git", "-C", str(root), *command], capture_output=True, check=False)
    except FileNotFoundError:
        raise SteerError("bench.commits needs git, and a checkout with its history") from None
    if ran.returncode:
        raise SteerError(f"git {' '.join(command)}: {ran.stderr.decode().strip()}")
    return ran.stdout


def measure(before: Tree, after: Tree, rounds: int, sequences: str, ticks: int) -> list[Times]:
    """``rounds`` times of before, each followed by that of after; measured in turns."""
    pairs = []
    for number in tqdm(range(rounds), "bench.commits", unit=" rounds"):
        order = (before, after) if number % 2 == 0 else (after, before)
        found = {tree.folder: tree.times(sequences, ticks) for tree in order}
        pairs += [found[before.folder], found[after.folder]]
    return pairs


def compared(times: Sequence[Times]) -> list[Row]:
    """A row for each measure: medians, and the ratios of the rounds."""
    rows: list[Row] = []
    for what in times[0]:
        before = [each[what] for each in times[::2]]
        after = [each[what] for each in times[1::2]]
        ratios = [a / b for a, b in zip(after, before, strict=True)]
        rows.append(
            {
                "measured": what,
                "before_us": median(before),
                "after_us": median(after),
                "ratio": median(ratios),
                "ratio_least": min(ratios),
                "ratio_most": max(ratios),
            }
        )
    return rows


def show(rows: Sequence[Row]) -> str:
    """The table."""
    return render(
        ("measured", "before us", "after us", "after / before (least - most)"),
        [
            (
                str(r["measured"]),
                f"{r['before_us']:.1f}",
                f"{r['after_us']:.1f}",
                f"{r['ratio']:.3f} ({r['ratio_least']:.3f} - {r['ratio_most']:.3f})",
            )
            for r in rows
        ],
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.commits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("before", help="commit, branch or tag")
    add("after", nargs="?", default="HEAD", help="likewise (default: HEAD)")
    add("--rounds", type=int, default=5, help="times that both are measured (default: 5)")
    add("--sequences", default="1,16,64,256", help="of bench.scheduler (default: %(default)s)")
    add("--ticks", type=int, default=300, help="of bench.scheduler (default: 300)")
    add("--json", type=Path, metavar="FILE", help="write a result row a line")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 on bad input."""
    options = parse(arguments)
    try:
        if options.rounds < 1:
            raise SteerError(f"--rounds must be at least 1, got {options.rounds}")
        with TemporaryDirectory() as place, RowWriter(options.json) as writer:
            before, after = (
                Tree.build(commit, Path(place) / name)
                for name, commit in (("before", options.before), ("after", options.after))
            )
            times = measure(before, after, options.rounds, options.sequences, options.ticks)
            rows = compared(times)
            for row in rows:
                writer.write(
                    {
                        "before": before.commit,
                        "after": after.commit,
                        "rounds": options.rounds,
                        **row,
                    }
                )
    except (SteerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(show(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
