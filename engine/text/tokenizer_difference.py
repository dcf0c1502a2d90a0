"""The first difference of the tokenizers of two models, in words.

A token may have the same id in both and still differ: a special token has no text, and some strip
the spaces beside them. The definitions are compared as the tokenizers library writes them, as in a
tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

Definition = Mapping[str, Any]
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
_PARTS = ("normalizer", "pre_tokenizer", "model", "post_processor", "decoder")
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")  # of a model: null means empty
_SIDES = "{} in the small model, {} in the large"
_LONGEST = 60  # characters of a value in a message


class _Missing:
    def __repr__(self) -> str:
        return "missing"


_MISSING = _Missing()


def vocabulary_difference(small: Mapping[str, int], large: Mapping[str, int]) -> str | None:
    """The first difference of two maps from tokens (added ones included) to ids, or None."""
    for token, index in sorted(small.items(), key=lambda item: item[1]):
        if large.get(token) != index:
            there = f"is {large[token]}" if token in large else "does not exist"
            return f"token {token!r} is id {index} in the small model, {there} in the large"
    extra = next((t for t in sorted(large, key=lambda t: large[t]) if t not in small), None)
    if extra is not None:
        return f"token {extra!r} (id {large[extra]}) does not exist in the small model"
    return None


def definition_difference(small: Definition, large: Definition) -> str | None:
    """The first difference of two definitions whose tokens have the same ids, or None."""
    return next(_differences(small, large), None)


def _differences(small: Definition, large: Definition) -> Iterator[str]:
    added, others = ({t["id"]: t for t in side["added_tokens"]} for side in (small, large))
    for index in sorted({*added, *others}):
        yield from _of_added(index, added.get(index), others.get(index))
    # Tokens added in both are split off before the model sees the text; some files list them in its
    # vocabulary too.
    both = {
        added[index]["content"]
        for index in {*added, *others}
        if index in added and index in others and not added[index]["single_word"]
    }
    for part in _PARTS:
        mine, theirs = (_effective(side.get(part), part) for side in (small, large))
        if part == "model":
            mine, theirs = (_less(model, both) for model in (mine, theirs))
        for path, values in _leaves(mine, theirs, ""):
            yield f"their {part} differs: {path or 'it'} is {_both(*values)}"


def _less(model: Any, tokens: set[str]) -> Any:
    """A model's definition without these tokens in its vocabulary."""
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict):
        return model
    return model | {"vocab": {t: i for t, i in vocab.items() if t not in tokens}}


def _effective(value: Any, part: str) -> Any:
    """A part of a definition without settings that change neither ids nor text.

    Exporters differ in these: byte-level steps carry settings of other steps, a byte-level
    post-processor moves offsets only, and templates for pairs of texts are never used.
    """
    if isinstance(value, list):
        return [_effective(each, part) for each in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    if kind == "ByteLevel" and part == "post_processor":
        return None
    if kind == "Sequence" and part == "post_processor":
        steps = [s for each in value["processors"] if (s := _effective(each, part)) is not None]
        return steps[0] if len(steps) == 1 else steps or None
    dropped = {"trim_offsets"}
    if kind == "ByteLevel" and part == "decoder":
        dropped |= {"add_prefix_space", "use_regex"}
    if kind == "TemplateProcessing":
        dropped |= {"pair"}
    if part == "model":
        return {k: None if v == "" and k in _AFFIXES else v for k, v in value.items()}
    return {k: _effective(v, part) for k, v in value.items() if k not in dropped}


def _of_added(index: int, small: Any, large: Any) -> Iterator[str]:
    """Differences of one added token: whether both add it, and its flags."""
    name = f"token {(small or large)['content']!r} (id {index})"
    if small is None or large is None:
        yield f"{name} is {_SIDES.format(*('added' if t else 'not added' for t in (small, large)))}"
        return
    for flag in _FLAGS:
        if small[flag] != large[flag]:
            yield f"{name}: {flag} is {_both(small[flag], large[flag])}"


def _leaves(small: Any, large: Any, path: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Paths and values where two JSON values differ; a merge counts as one value."""
    if small == large:
        return
    if isinstance(small, dict) and isinstance(large, dict):
        for key in {**small, **large}:
            pair = small.get(key, _MISSING), large.get(key, _MISSING)
            yield from _leaves(*pair, f"{path}.{key}" if path else key)
    elif isinstance(small, list) and isinstance(large, list) and not path.startswith("merges["):
        for place, pair in enumerate(zip_longest(small, large, fillvalue=_MISSING)):
            yield from _leaves(*pair, f"{path}[{place}]")
    else:
        yield path, (small, large)


def _both(small: Any, large: Any) -> str:
    texts = (repr(value) for value in (small, large))
    cut = (t if len(t) <= _LONGEST else f"{t[: _LONGEST - 3]}..." for t in texts)
    return _SIDES.format(*cut)
