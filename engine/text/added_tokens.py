"""The tokens that a checkpoint's folder adds to its tokenizer, and those that it calls special."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from engine.errors import SteerError
from engine.files import Folder

SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_EXTRA = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("lstrip", "rstrip", "single_word")


def read_config(folder: Folder) -> dict[str, Any]:
    """A folder's tokenizer_config.json, with the tokens of its special_tokens_map.json.

    The latter is of an older format. As in transformers it counts unless the config lists its added
    tokens, and takes precedence then.
    """
    config = folder.optional_json("tokenizer_config.json")
    if "added_tokens_decoder" in config:
        return config
    named = folder.optional_json("special_tokens_map.json")
    return config | {key: named[key] for key in (*SPECIAL, *_EXTRA) if key in named}


def content(token: Any) -> str:
    """The text of a token, which some files write as an object."""
    return str(token.get("content")) if isinstance(token, Mapping) else str(token)


def add_tokens(tokenizer: Tokenizer, folder: Folder, config: Mapping[str, Any]) -> None:
    """Add the folder's tokens; SteerError if one does not get the id that the folder says.

    Tokens of the vocabulary that the config calls special become so.
    """
    path = folder.path / "tokenizer_config.json"
    special = {content(token): token for token in _special(config, path)}
    present = tokenizer.get_added_tokens_decoder()
    for index, token in sorted(_listed(tokenizer, folder, config, special).items()):
        added_token = _added_token(token)
        if present.get(index) == added_token:
            continue
        _add(tokenizer, added_token)
        if (actual := tokenizer.token_to_id(added_token.content)) != index:
            raise SteerError(
                f"{path}: added token {added_token.content!r} should be id {index}, it is {actual}"
            )
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for text, token in special.items():
        if text not in added and tokenizer.token_to_id(text) is not None:
            options = token if isinstance(token, Mapping) else {}
            _add(tokenizer, _added_token({**options, "content": text, "special": True}))


def _special(config: Mapping[str, Any], path: Path) -> Iterator[Any]:
    """The tokens that a config calls special, as text or objects."""
    yield from (config[name] for name in SPECIAL if config.get(name))
    for name in _EXTRA:
        given = config.get(name) or []
        if not isinstance(given, list | dict):
            raise SteerError(f"{path}: {name} must be a list of tokens, got {given!r}")
        yield from given.values() if isinstance(given, Mapping) else given


def _listed(
    tokenizer: Tokenizer, folder: Folder, config: Mapping[str, Any], special: Mapping[str, Any]
) -> dict[int, Any]:
    """Tokens that the folder adds, by id; added_tokens.json has no flags of its own."""
    known = {t.content: index for index, t in tokenizer.get_added_tokens_decoder().items()}
    listed: dict[int, Any] = {}
    try:
        for text, index in folder.optional_json("added_tokens.json").items():
            if known.get(text) != index:  # else tokenizer.json has its flags
                listed[int(index)] = {"content": text, "special": text in special}
        tokens = config.get("added_tokens_decoder") or {}
        return listed | {int(index): token for index, token in tokens.items()}
    except (TypeError, ValueError, AttributeError) as error:
        path = folder.path / "tokenizer_config.json"
        raise SteerError(f"{path}: added tokens must have ids: {error}") from None


def _added_token(token: Any) -> AddedToken:
    options = token if isinstance(token, Mapping) else {}
    special = bool(options.get("special", False))
    return AddedToken(
        content(token),
        special=special,
        normalized=bool(options.get("normalized", not special)),
        **{name: bool(options.get(name, False)) for name in _FLAGS},
    )


def _add(tokenizer: Tokenizer, token: AddedToken) -> None:
    (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
