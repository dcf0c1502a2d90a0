"""Default parameters of requests, from a checkpoint's generation_config.json or GGUF keys."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.errors import SteerError
from engine.models.checkpoint import Checkpoint
from engine.params import SamplingParams

# Names in the file and in SamplingParams. Those of the first line count only with ``do_sample``.
_DRAWN = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_ALWAYS = {"repetition_penalty": "repetition_penalty", "max_new_tokens": "max_tokens"}
# Keys that would change the text but are not supported, with the values that switch them off; None
# and empty lists always do.
_IGNORED: dict[str, tuple[Any, ...]] = {
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "bad_words_ids": (),
    "sequence_bias": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "max_time": (),
    "stop_strings": (),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "token_healing": (False,),
    "num_beams": (1,),
    "constraints": (),
    "force_words_ids": (),
}
_IGNORED_DRAWN: dict[str, tuple[Any, ...]] = {
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
}
_log = logging.getLogger(__name__)


def default_params(*checkpoints: Checkpoint) -> SamplingParams:
    """Default parameters of requests, from the first checkpoint that has any.

    Without ``do_sample`` they are greedy. Unsupported settings of the file are named in a warning
    (``logging``). SteerError, naming the file, on values out of range.
    """
    for checkpoint in checkpoints:
        recommended = checkpoint.recommendation()
        if recommended is None:
            continue
        _warn(recommended.path, recommended.unknown)
        if recommended.settings is not None:
            return _read(recommended.settings, recommended.path)
    return SamplingParams()


def _warn(path: Path, ignored: Collection[str]) -> None:
    if ignored:
        _log.warning("%s: not done here, so it is ignored: %s", path, ", ".join(ignored))


def _read(raw: Mapping[str, Any], path: Path) -> SamplingParams:
    _warn(path, tuple(_ignored(raw)))
    names, settings = dict(_ALWAYS), dict[str, Any]()
    if raw.get("do_sample") is True:
        names |= _DRAWN
        settings["temperature"] = 1.0
    settings |= {ours: raw[theirs] for theirs, ours in names.items() if raw.get(theirs) is not None}
    if settings.get("top_k") == -1:
        settings["top_k"] = 0  # both switch it off
    try:
        return SamplingParams(**settings)
    except SteerError as error:
        raise SteerError(f"{path}: {error}") from None


def _ignored(raw: Mapping[str, Any]) -> Iterator[str]:
    """Keys that are set and not supported."""
    off = _IGNORED | (_IGNORED_DRAWN if raw.get("do_sample") is True else {})
    if raw.get("max_new_tokens") is None:  # it overrides max_length
        off = {"max_length": (), **off}
    for name, values in off.items():
        if raw.get(name) not in (None, [], {}, *values):
            yield name
