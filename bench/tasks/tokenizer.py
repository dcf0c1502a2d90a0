"""The tokenizer of the embedded pair: one token a character, ``\\n\\n`` and specials apart."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from bench.tasks import hops, planning
from bench.tasks.problem import DELIMITER, EOS, EQUALS, PAD

# Ids are positions. The people of hops are the towns of planning.
ALPHABET = [PAD, EOS, DELIMITER, *"0123456789+-*?", EQUALS, *hops.PEOPLE, *hops.RELATIONS]
ALPHABET.append(planning.ROAD)


def build_tokenizer() -> Tokenizer:
    """A ``tokenizers`` object over all tasks in both styles; ids are positions in ``ALPHABET``."""
    vocabulary = {token: index for index, token in enumerate(ALPHABET)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n\n|<eos>|<pad>|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([PAD, EOS])
    return tokenizer
