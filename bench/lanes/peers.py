"""Other implementations that decode one model of the same shapes, with random weights of their own.

Each is measured as its authors advise: a static cache, and on a GPU the step compiled into graphs.
The cache is taken to be full up to the context: its content does not change the time. Each batch
and context is compiled separately, for these shapes alone: a function compiled for other shapes
would be recompiled for dynamic ones, and in the end not at all.
"""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from bench.lanes.device import Device
from engine.config import ModelConfig
from engine.errors import SteerError

Step = Callable[[], object]
_KNOWN = "commit 32971d3, (self, idx, input_pos)"
_TOLD = 300  # characters
_COMPILE_RUNS = 3  # untimed runs of a step


class Transformers:
    """``transformers`` with a static cache."""

    def __init__(self, shape: ModelConfig, dtype: torch.dtype, device: Device) -> None:
        """Builds the model from a configuration; nothing is downloaded."""
        from transformers import Qwen2Config, Qwen2ForCausalLM

        _forget(device)
        self.name = "transformers"
        self.version = metadata.version("transformers")
        self.compiled = device.on_gpu
        settings: dict[str, Any] = {
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            "max_position_embeddings": shape.max_position,
            "tie_word_embeddings": shape.tied,
            "attn_implementation": "sdpa",
        }
        self._config = Qwen2Config(**settings)
        self._shape = shape
        self._on = device
        self._device = device.kind
        with _made_as(dtype, self._device):
            self._model = Qwen2ForCausalLM(self._config)
        self._model.train(False)

    def step(self, batch: int, context: int) -> Step:
        """A step that gives ``batch`` sequences of ``context`` tokens one more each; greedy."""
        from transformers import StaticCache

        _forget(self._on)
        forward = _compiled(self._model.forward) if self.compiled else self._model.forward
        shape = self._shape
        cache: Any = StaticCache(config=self._config, max_cache_len=context + 1)
        cache.early_initialization(
            batch, shape.kv_heads, shape.head_dim, self._model.dtype, self._model.device
        )
        tokens = torch.ones(batch, 1, dtype=torch.long, device=self._device)
        position = torch.full((1,), context, device=self._device)

        @torch.inference_mode()
        def run() -> torch.Tensor:
            for layer in cache.layers:  # the same token again
                layer.cumulative_length.fill_(context)
            out = forward(
                input_ids=tokens, past_key_values=cache, position_ids=position[None], use_cache=True
            )
            drawn: torch.Tensor = out.logits[:, -1].argmax(-1).cpu()
            return drawn

        return run


class GptFast:
    """gpt-fast, from a checkout: the same matrices as a Llama, without biases."""

    def __init__(
        self, folder: Path, shape: ModelConfig, dtype: torch.dtype, device: Device
    ) -> None:
        """SteerError if the folder is none, or the shape is one that it cannot have."""
        if shape.head_dim * shape.heads != shape.hidden_size:
            raise SteerError("gpt-fast has no heads of another width than hidden_size / heads")
        _forget(device)
        module = _load_module(folder / "model.py")
        self.name = "gpt-fast"
        self.version = _checkout(folder)
        self.compiled = device.on_gpu
        self._on = device
        self._device = device.kind
        arguments = module.ModelArgs(
            block_size=shape.max_position,
            vocab_size=shape.vocab_size,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_local_heads=shape.kv_heads,
            dim=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            rope_base=shape.rope_theta,
        )
        with _made_as(dtype, self._device):
            self._model = module.Transformer(arguments).eval()

    def step(self, batch: int, context: int) -> Step:
        """One more token of ``batch`` sequences that have ``context`` already; greedy."""
        _forget(self._on)
        forward = _compiled(self._model) if self.compiled else self._model
        self._model.max_seq_length = self._model.max_batch_size = -1  # caches of another size
        with torch.device(self._device):
            self._model.setup_caches(batch, context + 1)
        tokens = torch.ones(batch, 1, dtype=torch.int, device=self._device)
        position = torch.full((1,), context, dtype=torch.int, device=self._device)

        @torch.inference_mode()
        def run() -> torch.Tensor:
            logits: torch.Tensor = forward(tokens, position)
            return logits[:, -1].argmax(-1).cpu()

        return run


Peer = Transformers | GptFast


def peers_of(
    shape: ModelConfig, dtype: torch.dtype, device: Device, gpt_fast: Path | None
) -> dict[str, Callable[[], Peer]]:
    """The installed peers by name, to be built one after the other: a card holds one at a time."""
    peers: dict[str, Callable[[], Peer]] = {}
    if importlib.util.find_spec("transformers") is not None:
        peers["transformers"] = lambda: Transformers(shape, dtype, device)
    if gpt_fast is not None:
        peers["gpt-fast"] = lambda: GptFast(gpt_fast, shape, dtype, device)
    return peers


def said(error: Exception) -> str:
    """An error in one line: compilers write pages."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:_TOLD]


def time_step(step: Step, device: Device, count: int) -> list[float]:
    """Seconds of ``count`` steps."""
    for _ in range(_COMPILE_RUNS):
        step()
    return [device.seconds(step) for _ in range(count)]


def check_gpt_fast(folder: Path | None) -> None:
    """SteerError if this is no checkout of gpt-fast."""
    if folder is None:
        return
    if not (folder / "model.py").is_file():
        raise SteerError(f"--gpt-fast {folder}: no model.py there; expected a checkout of gpt-fast")
    takes = list(
        inspect.signature(_load_module(folder / "model.py").Transformer.forward).parameters
    )
    if takes != ["self", "idx", "input_pos"]:
        raise SteerError(f"--gpt-fast {folder}: its forward{tuple(takes)} is not that of {_KNOWN}")


def _forget(device: Device) -> None:
    """Drop functions compiled for other shapes, and the memory of their graphs."""
    if device.on_gpu:
        torch._dynamo.reset()
    device.release()


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled for the shapes of its first call."""
    compiled: Callable[..., Any] = torch.compile(
        function, mode="reduce-overhead", fullgraph=True, dynamic=False
    )
    return compiled


class _made_as:  # noqa: N801  (reads as a phrase)
    """Parameters are created of this type, on this device."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self._dtype = dtype
        self._device = torch.device(device)

    def __enter__(self) -> None:
        self._before = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype)
        self._device.__enter__()

    def __exit__(self, *error: object) -> None:
        self._device.__exit__(*error)
        torch.set_default_dtype(self._before)


def _load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpt_fast_model", path)
    if spec is None or spec.loader is None:
        raise SteerError(f"--gpt-fast: {path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def _checkout(folder: Path) -> str:
    """The commit of the checkout, where git knows."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown commit"
    return done.stdout.strip()
