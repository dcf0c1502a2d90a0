"""The sampling settings that a GGUF file recommends, in the words of a generation_config.json."""

from __future__ import annotations

from typing import Any

from engine.gguf.file import GgufFile
from engine.models.gguf_shape import shortest

_PREFIX = "general.sampling."
# Names in a GGUF file and in generation_config.json.
_NAMES = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def sampling_settings(file: GgufFile) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """A file's ``general.sampling`` keys, translated, and the keys that have no translation.

    None without a temperature: the format does not define its default.
    """
    settings, unknown = dict[str, Any](), list[str]()
    for key in file.keys(_PREFIX):
        name = _NAMES.get(key.removeprefix(_PREFIX))
        if name is None:
            unknown.append(key)
        else:
            value = file.get(key, (int, float))
            settings[name] = shortest(value) if isinstance(value, float) else value
    if "temperature" not in settings:
        return None, tuple(unknown)
    return settings | {"do_sample": settings["temperature"] > 0}, tuple(unknown)
