"""The tokenizer of the embedded pair: one token a character, ``\\n\\n`` and specials apart."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from bench.tasks.arithmetic import ALPHABET, EOS, EQUALS, PAD


def build_tokenizer(style: str = "open") -> Tokenizer:
    """A ``tokenizers`` object over the task's alphabet; ids are positions in ``ALPHABET``."""
    alphabet = [*ALPHABET, EQUALS] if style == "rigid" else ALPHABET
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n\n|<eos>|<pad>|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([PAD, EOS])
    return tokenizer
