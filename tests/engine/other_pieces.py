"""A pair whose large model cuts its texts into other pieces, and what must hold of it."""

from __future__ import annotations

import random
from itertools import permutations
from pathlib import Path

from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from engine import AfterThinking, Engine, EngineConfig, Random, Window
from engine.routing.policies import Always, Threshold
from engine.text.tokenizer import Tokenizer

from .conftest import DELIMITERS, LARGE, SMALL, TIE, TOKENS, Oracle, random_model, save

POLICIES = {
    "small": Always("small"),
    "large": Always("large"),
    "random": Random(0.5, seed=3),
    "threshold": Threshold("max_prob", 0.9),
    "probe": Threshold("max_prob", 0.9, window=Window("probe", 3, least=True)),
    "step": Threshold("max_prob", 0.97, window=Window("step", least=True)),
    "answer": Threshold("max_prob", 0.9, window=Window("answer", least=True)),
    "after": AfterThinking(Random(0.5), Threshold("max_prob", 0.95)),
}


def pieces_tokenizer() -> FastTokenizer:
    """The characters of ``TOKENS`` and all pairs of a to d, in another order."""
    pairs = ["".join(p) for p in permutations("abcd", 2)]
    tokens = [*pairs, *reversed(TOKENS)]
    tokenizer = FastTokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, "a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\n\n|\n|" + "|".join(pairs) + "|."), "isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


class OtherPieces:
    """A pair whose large model writes in other pieces, and both models' oracles."""

    def __init__(self, folder: Path) -> None:
        small = random_model(3, **SMALL)
        shape = {**LARGE, "vocab": 56}
        large = random_model(1003, **shape)
        self.folders = save(small, folder / "small"), save(large, folder / "large")
        pieces_tokenizer().save(str(folder / "large" / "tokenizer.json"))
        self.small, self.large = Oracle(small), Oracle(large)
        self.tokenizers = Tokenizer(self.folders[0]), Tokenizer(self.folders[1])

    def engine(self, **config) -> Engine:
        small, large = self.folders
        settings = EngineConfig(delimiters=DELIMITERS, retokenize=True, **config)
        return Engine("custom", small=small, large=large, config=settings, device="cpu")

    def likeliest(self, oracle: Oracle, model: int, tokens: list[int]) -> tuple[int, float]:
        row = oracle.logits(tokens)[-1, : self.tokenizers[model].size]
        top = row.topk(2)
        return int(top.indices[0]), float(top.values[0] - top.values[1])

    def check(self, prompt: str, done) -> int:
        """Each step is what its model says of its own ids; returns tokens of large steps."""
        mine, theirs = (t.encode(prompt) for t in self.tokenizers)
        crossed, written, large_tokens = b"", b"", 0
        for step in done.steps:
            data = self.tokenizers[0].bytes_of(step.token_ids)
            last = step is done.steps[-1]
            if step.model == "small":
                for place, token in enumerate(step.token_ids):
                    said, lead = self.likeliest(self.small, 0, [*mine, *step.token_ids[:place]])
                    assert said == token or lead < TIE
            else:
                ids = self.tokenizers[1].write(written[len(crossed) :])
                assert (
                    ids is not None and self.tokenizers[1].bytes_of(ids) == written[len(crossed) :]
                )
                theirs += ids
                own = b""
                while len(own) < len(data):
                    token, _ = self.likeliest(self.large, 1, theirs)
                    theirs.append(token)
                    own += self.tokenizers[1].bytes[token]
                    large_tokens += 1
                assert own == data or (last and own.startswith(data)), (own, data)
                crossed = written + own
            mine += step.token_ids
            written += data
        return large_tokens


def letters(rng: random.Random, longest: int = 30) -> str:
    return "".join(rng.choice("abcdefgh123") for _ in range(rng.randint(1, longest)))
