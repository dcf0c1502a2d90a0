"""The tensors of a model, and the tensors of its checkpoint that they come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.config import ModelConfig


@dataclass(frozen=True)
class Linear:
    """A linear layer of the model: layers of the checkpoint with the same input, stacked.

    name: name of the model's layer, without ``.weight``.
    parts: names and rows of the checkpoint's layers.
    columns: number of inputs.
    biased: whether each part has a bias.
    """

    name: str
    parts: tuple[tuple[str, int], ...]
    columns: int
    biased: bool = False

    @property
    def rows(self) -> int:
        """Number of outputs."""
        return sum(rows for _, rows in self.parts)


@dataclass(frozen=True)
class Table:
    """A tensor that is the same in model and checkpoint: a norm, the embedding, the head."""

    name: str
    shape: tuple[int, ...]


Part = Linear | Table


def model_parts(config: ModelConfig) -> Iterator[Part]:
    """All parts of a model in the order of its layers."""
    hidden = config.hidden_size
    yield Table("model.embed_tokens.weight", (config.vocab_size, hidden))
    for layer in range(config.layers):
        yield from _layer_parts(config, f"model.layers.{layer}")
    yield Table("model.norm.weight", (hidden,))
    if not config.tied:
        yield Table("lm_head.weight", (config.vocab_size, hidden))


def _layer_parts(config: ModelConfig, prefix: str) -> Iterator[Part]:
    hidden, width = config.hidden_size, config.intermediate_size
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    query, key = config.query_width, config.kv_width
    yield Table(f"{prefix}.input_layernorm.weight", (hidden,))
    qkv = tuple(
        (f"{attention}.{n}_proj", rows) for n, rows in (("q", query), ("k", key), ("v", key))
    )
    yield Linear(f"{attention}.qkv_proj", qkv, hidden, config.qkv_bias)
    if config.qk_norm:
        for name in ("q_norm", "k_norm"):
            yield Table(f"{attention}.{name}.weight", (config.head_dim,))
    yield _single(f"{attention}.o_proj", hidden, query, config.output_bias)
    yield Table(f"{prefix}.post_attention_layernorm.weight", (hidden,))
    gate_up = (f"{mlp}.gate_proj", width), (f"{mlp}.up_proj", width)
    yield Linear(f"{mlp}.gate_up_proj", gate_up, hidden, config.mlp_bias)
    yield _single(f"{mlp}.down_proj", hidden, width, config.mlp_bias)


def _single(name: str, rows: int, columns: int, biased: bool) -> Linear:
    return Linear(name, ((name, rows),), columns, biased)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this shape holds, unquantised."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part in model_parts(config):
        if isinstance(part, Table):
            shapes[part.name] = part.shape
            continue
        for name, rows in part.parts:
            shapes[f"{name}.weight"] = (rows, part.columns)
            if part.biased:
                shapes[f"{name}.bias"] = (rows,)
    return shapes


def fused_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the model itself, unquantised."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part in model_parts(config):
        if isinstance(part, Table):
            shapes[part.name] = part.shape
            continue
        shapes[f"{part.name}.weight"] = (part.rows, part.columns)
        if part.biased:
            shapes[f"{part.name}.bias"] = (part.rows,)
    return shapes
