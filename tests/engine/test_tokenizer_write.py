"""Tokenizer.write: every byte that a model wrote becomes tokens of the other."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from engine.text.tokenizer import Tokenizer

from .hard_text import HARD


def trained_byte_level(folder: Path, normalizer=None) -> Tokenizer:
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=380, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([t for t in HARD if t.strip()] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("</think>", normalized=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def trained_pieces(folder: Path, dummy: bool) -> Tokenizer:
    corpus = [t.replace("\n", " ").replace("\0", "") for t in HARD if t.strip()] * 3
    (folder / "text").write_text("\n".join(corpus))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=480,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.98,
        add_dummy_prefix=dummy,
        normalization_rule_name="identity",
        remove_extra_whitespaces=dummy,
        minloglevel=2,
    )
    return Tokenizer(folder)


@pytest.mark.parametrize("kind", ["bytes", "nfc", "pieces", "tidied pieces"])
def test_every_byte_crosses(kind: str, tmp_path: Path):
    if kind in ("bytes", "nfc"):
        tokenizer = trained_byte_level(tmp_path, normalizers.NFC() if kind == "nfc" else None)
    else:
        tokenizer = trained_pieces(tmp_path, dummy=kind == "tidied pieces")
    rng = random.Random(1)
    texts = [t.encode() for t in HARD]
    texts += [bytes(rng.randrange(256) for _ in range(rng.randint(1, 40))) for _ in range(50)]
    texts += [data[rng.randrange(len(data)) :] for data in texts if data]
    texts += [data[: rng.randrange(len(data))] for data in texts if data]
    for data in texts:
        ids = tokenizer.write(data)
        assert ids is not None and tokenizer.bytes_of(ids) == data, data
    for text in ("so it goes", "</think>"):  # plain text in as few tokens as the tokenizer has
        written, encoded = tokenizer.write(text.encode()), tokenizer.encode(text)
        assert written is not None and len(written) <= len(encoded) + 1
    special = tokenizer.write(b"<|im_start|>")
    assert special is not None and len(special) > 1
