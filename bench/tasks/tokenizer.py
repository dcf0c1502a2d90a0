"""The tokenizer of the embedded pair: one token a character, but for delimiters and ``>>``."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from bench.tasks import hops, planning
from bench.tasks.problem import COLON, DELIMITER, EOS, EQUALS, FULL_STOP, PAD

# Ids are positions. Arithmetic shares only the end of sequence with the other tasks: the halves of
# the pair that were trained on them stay apart (bench/pair_training/join.py).
NUMBERS = [PAD, EOS, DELIMITER, *"0123456789+-*?"]
GRAPHS = [COLON, FULL_STOP + DELIMITER, *hops.PEOPLE, *hops.HOPS, *hops.RELATIONS, hops.QUESTION]
GRAPHS.append(planning.EXIT)
ALPHABET = [*NUMBERS, *GRAPHS, EQUALS]
_PIECES = Regex(r"\.\n\n|\n\n|<eos>|<pad>|>>|.")


def build_tokenizer() -> Tokenizer:
    """A ``tokenizers`` object over all tasks in both styles; ids are positions in ``ALPHABET``."""
    vocabulary = {token: index for index, token in enumerate(ALPHABET)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(_PIECES, "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([PAD, EOS])
    return tokenizer
