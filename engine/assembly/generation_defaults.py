"""What a checkpoint recommends (generation_config.json), as the parameters of a request."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.errors import SteerError
from engine.files import read_json
from engine.gguf.file import GgufFile, opened
from engine.models.gguf_shape import shortest
from engine.params import SamplingParams

# Their names in the file, and ours. Those of the first line count only where ``do_sample`` is true.
_DRAWN = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_ALWAYS = {"repetition_penalty": "repetition_penalty", "max_new_tokens": "max_tokens"}
# What would change the text too and is not done here, with the values that switch it off; None and
# empty lists always do. Some count only beside another setting.
_IGNORED: dict[str, tuple[Any, ...]] = {
    "suppress_tokens": (), "begin_suppress_tokens": (), "bad_words_ids": (), "sequence_bias": (),
    "forced_bos_token_id": (), "forced_eos_token_id": (), "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,), "encoder_repetition_penalty": (1,), "min_length": (0,),
    "min_new_tokens": (0,), "max_time": (), "stop_strings": (), "penalty_alpha": (0,),
    "dola_layers": (), "exponential_decay_length_penalty": (), "guidance_scale": (1,),
    "watermarking_config": (), "token_healing": (False,), "num_beams": (1,), "constraints": (),
    "force_words_ids": (),
}  # fmt: skip
_IGNORED_DRAWN: dict[str, tuple[Any, ...]] = {
    "typical_p": (1,), "epsilon_cutoff": (0,), "eta_cutoff": (0,), "top_h": (),
}  # fmt: skip
# Their names in a GGUF file.
_GGUF = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}  # fmt: skip
_log = logging.getLogger(__name__)


def default_params(*sources: Path | GgufFile) -> SamplingParams:
    """Parameters for requests that bring none: those of the first checkpoint that has some.

    Without ``do_sample`` they are greedy. What the file sets and the engine does not do is named in
    a warning (``logging``). SteerError, naming the file, on values out of range.
    """
    for source in map(opened, sources):
        if isinstance(source, GgufFile):
            if raw := _of_gguf(source):
                return _read(raw, source.path)
        elif (path := source / "generation_config.json").is_file():
            return _read(read_json(path), path)
    return SamplingParams()


def _of_gguf(file: GgufFile) -> dict[str, Any]:
    """What a file's ``general.sampling`` keys say, in the words of a generation_config.json.

    Without a temperature they say nothing here: what they leave open is up to their reader.
    """
    prefix, found, ignored = "general.sampling.", dict[str, Any](), list[str]()
    for key in file.keys(prefix):
        name = _GGUF.get(key.removeprefix(prefix))
        if name is None:
            ignored.append(key)
        else:
            value = file.get(key, (int, float))
            found[name] = shortest(value) if isinstance(value, float) else value
    if ignored:
        _log.warning("%s: not done here, so it is ignored: %s", file, ", ".join(ignored))
    return found | {"do_sample": found["temperature"] > 0} if "temperature" in found else {}


def _read(raw: Mapping[str, Any], path: Path) -> SamplingParams:
    if ignored := ", ".join(_ignored(raw)):
        _log.warning("%s: not done here, so it is ignored: %s", path, ignored)
    names, found = dict(_ALWAYS), dict[str, Any]()
    if raw.get("do_sample") is True:
        names |= _DRAWN
        found["temperature"] = 1.0
    found |= {ours: raw[theirs] for theirs, ours in names.items() if raw.get(theirs) is not None}
    if found.get("top_k") == -1:
        found["top_k"] = 0  # both switch it off
    try:
        return SamplingParams(**found)
    except SteerError as error:
        raise SteerError(f"{path}: {error}") from None


def _ignored(raw: Mapping[str, Any]) -> Iterator[str]:
    """Keys that are set to something and have no counterpart here."""
    off = _IGNORED | (_IGNORED_DRAWN if raw.get("do_sample") is True else {})
    if raw.get("max_new_tokens") is None:  # which counts more
        off = {"max_length": (), **off}
    for name, values in off.items():
        if raw.get(name) not in (None, [], {}, *values):
            yield name
