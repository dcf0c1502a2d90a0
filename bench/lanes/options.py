"""The common parts of the command lines of decode, handoff, overlap and pair."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from bench.lanes.device import Bandwidth, Device, threads
from bench.lanes.pairs import DUMMY_PAIRS, PACKINGS, dummy_pair
from bench.lanes.shared import Shared
from bench.plot import check_plot
from bench.simulation.grid import each, real, whole
from bench.simulation.setting import BLOCK_TOKENS
from engine import Engine, EngineConfig
from engine.config import LOAD_FORMATS, ModelConfig
from engine.config.pairs import Pair
from engine.device.devices import DTYPES
from engine.errors import SteerError
from engine.files import check_output
from engine.models.checkpoint import load_config

Defaults = dict[str, dict[str, str]]
SCALES = ("quick", "cpu", "cuda")
COMMON: Defaults = {
    "pair": {"quick": "dummy-tiny", "cpu": "dummy-cpu", "cuda": "qwen-1.5b/qwen-32b"},
    "dtype": {"quick": "float32", "cpu": "float32", "cuda": "bfloat16"},
    # What 80 GB hold next to 1.5B and 32B in bf16, with one GiB already in use.
    "arena_tokens": {"quick": "8192", "cpu": "65536", "cuda": "36864"},
    "memory_fraction": {"quick": "0.92", "cpu": "0.92", "cuda": "0.97"},
    "repeats": {"quick": "3", "cpu": "10", "cuda": "50"},
}
_MAX_SEQUENCES = 64


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SteerError(message)


class Options:
    """The command line of one bench: common flags and its own, with defaults by scale.

    The scale is ``quick`` with --quick, else the device's. Values stay text until they are read, so
    that a wrong one is refused in one line.
    """

    def __init__(self, name: str, description: str | None, own: Defaults) -> None:
        """``own``: defaults of the bench's flags by scale; :meth:`add` declares them."""
        self.name = name
        self._defaults = {**COMMON, **own}
        self._parser = _Parser(
            prog=f"python -m bench.{name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._given = argparse.Namespace()
        self._arguments: Sequence[str] = ()
        self._add_common()

    def add(self, flag: str, meaning: str, metavar: str = "LIST") -> None:
        """Declare a flag of the bench."""
        by_scale = self._defaults[flag.removeprefix("--").replace("-", "_")]
        told = ", ".join(f"{by_scale[scale]} ({scale})" for scale in SCALES)
        if len(set(by_scale.values())) == 1:
            told = by_scale["quick"]
        self._parser.add_argument(flag, metavar=metavar, help=f"{meaning} (default: {told})")

    def add_switch(self, flag: str, meaning: str) -> None:
        """Declare a flag without a value."""
        self._parser.add_argument(flag, action="store_true", help=meaning)

    def add_number(self, flag: str, meaning: str, default: str) -> None:
        """Declare a flag whose default does not depend on the scale."""
        told = f"{meaning} (default: {default})"
        self._parser.add_argument(flag, default=default, metavar="N", help=told)

    def add_path(self, flag: str, meaning: str, metavar: str) -> None:
        """Declare a path."""
        self._parser.add_argument(flag, type=Path, metavar=metavar, help=meaning)

    def _add_common(self) -> None:
        self.add("--pair", f"one of {', '.join(DUMMY_PAIRS)}; with folders any name", "PAIR")
        self.add_path("--small", "the small model, with --load-format safetensors", "PATH")
        self.add_path("--large", "the large model, likewise", "PATH")
        self._parser.add_argument(
            "--load-format",
            default="dummy",
            help="dummy makes up weights of the pair's shapes, good only to measure times; "
            "safetensors reads the folders (default: %(default)s)",
        )
        self._parser.add_argument("--layers", metavar="N", help="replaces the depth of both models")
        self._parser.add_argument(
            "--quantise",
            metavar="FORMAT",
            help=f"packs the large model's made-up linear layers: {', '.join(PACKINGS)}",
        )
        self.add("--dtype", f"of weights and KV: {', '.join(DTYPES)}", "TYPE")
        self._parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
        self._parser.add_argument(
            "--devices",
            metavar="SMALL,LARGE",
            help="a device for each model instead, as in cuda:0,cuda:1; fractions are then of the "
            "bandwidth of the large model's card",
        )
        self.add("--arena-tokens", "KV memory in tokens of the large model", "N")
        self.add("--memory-fraction", "share of a card's memory that may be in use", "X")
        self.add_number("--max-tick-tokens", "rows of a tick", "2048")
        self.add("--repeats", "timed ticks of each kind", "N")
        self.add_path("--json", "write a result row a line", "FILE")
        self.add_switch("--append", "append the rows to those in the file")
        self.add_path("--plot", "write a picture", "FILE")
        self.add_switch("--quick", "the smallest run, to see that it works")

    def parse(self, arguments: Sequence[str] | None) -> None:
        """SteerError on flags that do not exist and files that cannot be written."""
        self._arguments = sys.argv[1:] if arguments is None else arguments
        self._given = self._parser.parse_args(self._arguments)
        check_output(self._given.json, "--json")
        if self._given.plot:
            check_plot(self._given.plot)
        self.device = self._device()
        self.scale = "quick" if self._given.quick else self.device.kind

    def _device(self) -> Device:
        kind, each = self._given.device, self._given.devices
        if each is None:
            return Device(kind) if kind is not None else Device.best()
        if kind is not None:
            raise SteerError("--devices names both models' devices: leave --device out")
        return Device.of_models(each)

    def __getattr__(self, name: str) -> Any:
        """A flag's value as text, the default of the scale where it is not given."""
        value = getattr(self._given, name)
        return (
            self._defaults[name][self.scale] if value is None and name in self._defaults else value
        )

    def whole(self, name: str, low: int = 1, high: int | None = None) -> int:
        """A flag as a whole number."""
        return whole(f"--{name.replace('_', '-')}", getattr(self, name), low, high)

    def each(self, name: str, read: Callable[[str], Any] | None = None) -> list[Any]:
        """A flag as a list, by default of whole numbers from 1 on."""
        flag = f"--{name.replace('_', '-')}"
        return each(getattr(self, name), read or (lambda text: whole(flag, text)))

    @property
    def command(self) -> str:
        """The command that repeats this run."""
        return shlex.join(["python", "-m", f"bench.{self.name}", *self._arguments])

    def setup(self, shared: Shared | None = None) -> Setup:
        """The setup to measure. Measures the bandwidth: call it before anything is loaded.

        ``shared``: holds an engine and the bandwidth for all benches of one process.
        """
        if self.load_format not in LOAD_FORMATS:
            known = ", ".join(LOAD_FORMATS)
            raise SteerError(f"--load-format: unknown {self.load_format!r}; known: {known}")
        if self.dtype not in DTYPES:
            raise SteerError(f"--dtype: unknown {self.dtype!r}; known: {', '.join(DTYPES)}")
        pair, config = self.pair_asked(), self.config()
        if shared is None:
            bandwidth = self.device.bandwidth(self.quick)
        else:
            bandwidth = shared.bandwidth(self.device, self.quick)
        return Setup(
            pair, config, self.dtype, self.device, bandwidth, self.command, self.quantise, shared
        )

    def config(self) -> EngineConfig:
        """The settings of the engines."""
        return EngineConfig(
            block_tokens=BLOCK_TOKENS,
            arena_tokens=self.whole("arena_tokens"),
            max_sequences=_MAX_SEQUENCES,
            max_tick_tokens=self.whole("max_tick_tokens", _MAX_SEQUENCES + 1),
            prefix_cache=False,  # equal requests must not share the work that is measured
            eager_admission=True,  # they are sized to fit: a forecast would only hold some back
            load_format=self.load_format,
            memory_fraction=real("--memory-fraction", self.memory_fraction, 0.01, 1),
        )

    def pair_asked(self) -> Pair:
        """Two folders, or the shapes of made-up weights."""
        folders = self.small, self.large
        if any(folders):
            for flag in ("layers", "quantise"):
                if getattr(self, flag) is not None:
                    raise SteerError(f"--{flag} goes with made-up weights, not with folders")
            return Pair.named(self._given.pair or "custom", *folders)
        if self.load_format != "dummy":
            raise SteerError("--load-format safetensors needs --small PATH and --large PATH")
        layers = None if self.layers is None else self.whole("layers")
        return dummy_pair(self.pair, layers, self.quantise)


@dataclass(frozen=True)
class Setup:
    """A pair, settings and a device: engines are built from it."""

    pair: Pair
    config: EngineConfig
    dtype: str
    device: Device
    bandwidth: Bandwidth
    command: str
    quantise: str | None = None
    shared: Shared | None = None

    def engine(self, at_once: int = 1, **changes: Any) -> Engine:
        """An engine with ``changes`` to its settings. Drop the last one first: a card holds one.

        Decodes of up to ``at_once`` sequences are recorded, so that no timed tick waits for that.
        """
        config = EngineConfig(**{**vars(self.config), **changes})
        if self.shared is not None:
            key = self.pair, self.dtype, config
            return self.shared.engine(key, at_once, lambda: self._build(config, at_once))
        return self._build(config, at_once)

    def _build(self, config: EngineConfig, at_once: int) -> Engine:
        self.device.release()
        options = self.device.engine_options
        engine = Engine(self.pair, config=config, dtype=self.dtype, **options)
        engine.warm_up(min(at_once, config.max_sequences))
        return engine

    @property
    def shapes(self) -> tuple[ModelConfig, ModelConfig]:
        """Shapes of the small and the large model, before anything is loaded."""
        if self.pair.small is None or self.pair.large is None:
            return self.pair.shapes
        return load_config(self.pair.small), load_config(self.pair.large)

    @property
    def element_bytes(self) -> int:
        """Bytes of an element of weights and KV."""
        return DTYPES[self.dtype].itemsize

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of every row."""
        return {
            "pair": self.pair.name,
            "load_format": self.config.load_format,
            "dtype": self.dtype,
            "quantise": self.quantise,
            "device": self.device.name,
            "threads": None if self.device.on_gpu else threads(),
            "copy_bandwidth": self.bandwidth.copy,
            "read_bandwidth": self.bandwidth.read,
            "arena_tokens": self.config.arena_tokens,
            "max_tick_tokens": self.config.max_tick_tokens,
            "command": self.command,
        }

    @property
    def head(self) -> str:
        """The same in a line, for people."""
        made_up = ", made-up weights" if self.config.load_format == "dummy" else ""
        return (
            f"{self.pair.name}{made_up}, {self.dtype}, {self.device.name}: copy "
            f"{self.bandwidth.copy / 1e9:.1f} GB/s, read {self.bandwidth.read / 1e9:.1f} GB/s"
        )


INTERRUPTED = 130


def guarded(run: Callable[[], int]) -> int:
    """Exit status of a bench: its own, 2 on bad input, 130 when interrupted."""
    try:
        return run()
    except (SteerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: rows that were finished are written", file=sys.stderr)
        return INTERRUPTED
