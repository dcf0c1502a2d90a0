"""A byte-level BPE without training: every byte, two merges, and what a test adds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

MERGES = [("h", "e"), ("t", "he")]


def write_plain_bpe(folder: Path, added: Mapping[str, bool], **config: Any) -> Path:
    """tokenizer.json with added tokens, special or not, and a tokenizer_config.json."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "the"]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for token, special in added.items():
        made = AddedToken(token, special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([made])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
