"""The tokens that end a text: all that any file of a checkpoint folder declares."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine.config import ModelConfig
from engine.models.checkpoint import Checkpoint
from engine.text.tokenizer import Tokenizer

_GENERATION, _CONFIG = "generation_config.json", "config.json"
_BY_TEXT = ("tokenizer_config.json", "special_tokens_map.json")
_log = logging.getLogger(__name__)

Shapes = tuple[ModelConfig, ModelConfig]


def with_end_ids(
    checkpoints: tuple[Checkpoint, Checkpoint],
    shapes: Shapes,
    tokenizers: tuple[Tokenizer, Tokenizer],
) -> Shapes:
    """The shapes with all end-of-sequence ids of their folders; those that they have come first.

    ``config.json`` and ``generation_config.json`` name ids, the tokenizer's files a token. Where
    both of the first do, an ordinary token of ``config.json`` is left out: it is a stale default.
    GGUF files come with all of theirs. One INFO line a folder (``logging``) where its files differ.
    """
    declared = [_declared(*each) for each in zip(checkpoints, tokenizers, strict=True)]
    for line in dict.fromkeys(map(_line, checkpoints, declared)):
        if line:
            _log.info("%s", line)
    small, large = (
        replace(shape, eos_ids=_joined({"": shape.eos_ids} | ids))
        for shape, ids in zip(shapes, declared, strict=True)
    )
    return small, large


def _declared(checkpoint: Checkpoint, tokenizer: Tokenizer) -> dict[str, tuple[int, ...]]:
    """End-of-sequence ids by the name of their file; files without any are left out."""
    generation = _ids(checkpoint.json(_GENERATION), tokenizer)
    config = _ids(checkpoint.json(_CONFIG), tokenizer)
    if generation:
        config = tuple(i for i in config if i in generation or not tokenizer.bytes[i])
    declared = {_GENERATION: generation, _CONFIG: config}
    for name in _BY_TEXT:
        token = _text(checkpoint.json(name).get("eos_token"))
        index = None if token is None else tokenizer.id_of(token)
        declared[name] = () if index is None else (index,)
    return {name: ids for name, ids in declared.items() if ids}


def _ids(raw: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The valid ids under ``eos_token_id``; what must be valid is checked with the shape."""
    value = raw.get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    return tuple(i for i in ids if type(i) is int and 0 <= i < tokenizer.size)


def _text(token: Any) -> str | None:
    """The text of a token, which some files write as an object."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _joined(declared: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Each id once, in order."""
    return tuple(dict.fromkeys(i for ids in declared.values() for i in ids))


def _line(checkpoint: Checkpoint, declared: Mapping[str, tuple[int, ...]]) -> str:
    """Which file names which ids; empty if the files agree."""
    if len({frozenset(ids) for ids in declared.values()}) < 2:
        return ""
    files = "; ".join(f"{name}: {_listed(ids)}" for name, ids in declared.items())
    return f"{checkpoint}: a text ends at any of the ids {_listed(_joined(declared))} ({files})"


def _listed(ids: tuple[int, ...]) -> str:
    return ", ".join(map(str, ids))
