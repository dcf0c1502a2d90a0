"""What a checkpoint's generation_config.json recommends, as the parameters of a request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors import SteerError
from engine.files import read_json
from engine.params import SamplingParams

# Their names in the file, and ours. Those of the first line count only where ``do_sample`` is true.
_DRAWN = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_ALWAYS = {"repetition_penalty": "repetition_penalty", "max_new_tokens": "max_tokens"}


def default_params(*folders: Path) -> SamplingParams:
    """Parameters for requests that bring none: those of the first folder with such a file.

    Without ``do_sample`` they are greedy. SteerError, naming the file, on values out of range.
    """
    for folder in folders:
        path = folder / "generation_config.json"
        if path.is_file():
            return _read(path)
    return SamplingParams()


def _read(path: Path) -> SamplingParams:
    raw = read_json(path)
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
