"""Random-weight pairs on disk, their transformers oracle, and slow versions of the rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from bench.gpu_quick.families import TOKENS, build_tokenizer
from engine import Completion, Engine, EngineConfig

DELIMITERS = ("b", "g", "k", "p", "t", "0", "4", "8", "\n\n", "\n", "cd")
TIE = 1e-4
ROLES = ("small", "large")
SMALL = {"hidden": 40, "layers": 3, "heads": 5, "kv_heads": 1, "ff": 56, "tied": True}
LARGE = {"hidden": 96, "layers": 2, "heads": 6, "kv_heads": 2, "ff": 72, "vocab": 48}

Schedule = Callable[[int], str]


def random_model(
    seed: int,
    *,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    ff: int,
    vocab: int = len(TOKENS),
    tied: bool = False,
    theta: float = 1e4,
    eps: float = 1e-6,
    scale: float = 0.2,
) -> Qwen2ForCausalLM:
    """A Qwen2 with random weights, biases and norms too, that writes varied greedy text."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ff,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=tied,
        initializer_range=scale,
        max_position_embeddings=256,
        use_cache=False,
        rms_norm_eps=eps,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )
    model = Qwen2ForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.normal_(float("norm" in name), 0.2)
    return model


def save(model: Qwen2ForCausalLM, folder: Path) -> Path:
    """Write a checkpoint folder, tokenizer included."""
    model.save_pretrained(folder)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@dataclass
class Oracle:
    """transformers' own model, kept apart from everything that the engine does."""

    model: Qwen2ForCausalLM

    @torch.no_grad()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        """[len(tokens), vocab]: what the model says from scratch about every prefix."""
        return self.model(torch.tensor([list(tokens)])).logits[0]

    def next(self, tokens: Sequence[int]) -> tuple[int, float]:
        """Greedy next token among the tokenizer's ids, and its lead over the second."""
        top = self.logits(tokens)[-1, : len(TOKENS)].topk(2)
        return int(top.indices[0]), float(top.values[0] - top.values[1])


@dataclass
class Ties:
    """Places where two correct programs may differ, counted."""

    count: int = 0
    compared: int = 0


@dataclass
class Writers:
    """Who writes each token by the rules, worked out slowly from the text alone."""

    schedule: Schedule
    delimiters: Sequence[str]
    start: int = 0
    role: str = ""
    opened: list[tuple[int, str]] = field(default_factory=list)

    def before(self, tokens: Sequence[int], prompt: int) -> str:
        """The writer of the token that follows ``tokens``."""
        if len(tokens) == prompt or self._ends(tokens[self.start :]):
            self.start, self.role = len(tokens), self.schedule(len(tokens))
            self.opened.append((self.start, self.role))
        return self.role

    def _ends(self, step: Sequence[int]) -> bool:
        text = "".join(TOKENS[i] for i in step)
        found = list(re.finditer("|".join(map(re.escape, self.delimiters)), text))
        last = bool(found) and found[-1].end() > len(text) - len(TOKENS[step[-1]])
        return last and sum(len(m.group()) for m in found) < len(text)


@dataclass
class PairKit:
    """Two checkpoints on disk, their oracles, and checks of what the engine made of them."""

    folders: tuple[Path, Path]
    oracles: dict[str, Oracle]

    def engine(self, **config: Any) -> Engine:
        """A real engine over the two folders; memory that was never written holds NaN."""
        small, large = self.folders
        made = Engine("tiny", small=small, large=large, config=EngineConfig(**config), device="cpu")
        made.arena.rows(made.shapes[0]).fill_(float("nan"))
        return made

    def write(
        self,
        prompt: Sequence[int],
        count: int,
        schedule: Schedule,
        delimiters: Sequence[str] = DELIMITERS,
    ) -> tuple[list[int], list[float]]:
        """``count`` tokens by the named models, each from scratch over the whole prefix."""
        tokens, leads = list(prompt), []
        writers = Writers(schedule, delimiters)
        for _ in range(count):
            token, lead = self.oracles[writers.before(tokens, len(prompt))].next(tokens)
            tokens.append(token)
            leads.append(lead)
        return tokens[len(prompt) :], leads

    def check(self, done: Completion, schedule: Schedule, ties: Ties) -> None:
        """A completion's text and steps are those of the schedule."""
        tokens, prompt = [*done.prompt_token_ids, *done.token_ids], len(done.prompt_token_ids)
        opened = self.check_tokens(tokens, prompt, schedule, ties)
        assert [(s.position, s.model) for s in done.steps] == opened

    def check_tokens(
        self, tokens: Sequence[int], prompt: int, schedule: Schedule, ties: Ties
    ) -> list[tuple[int, str]]:
        """Each token is what the scheduled model says of its prefix; returns the steps.

        Causal: one pass of the oracle over the text is one from scratch over each prefix.
        """
        says = {role: self.oracles[role].logits(tokens) for role in ROLES}
        writers = Writers(schedule, DELIMITERS)
        for place in range(prompt, len(tokens)):
            row = says[writers.before(tokens[:place], prompt)][place - 1, : len(TOKENS)]
            ties.compared += 1
            if int(row.argmax()) != tokens[place]:
                lead = float(row.max() - row[tokens[place]])
                assert lead < TIE, f"token {place}: the oracle's own leads by {lead}"
                ties.count += 1
        return writers.opened


def equal_up_to_a_tie(
    found: Sequence[int], expected: Sequence[int], leads: Sequence[float], ties: Ties
) -> None:
    """Equal, or first different where the oracle's own lead is below the bound."""
    assert len(found) == len(expected)
    ties.compared += len(expected)
    for place, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        if mine != theirs:
            assert leads[place] < TIE, f"token {place}: the oracle leads by {leads[place]}"
            ties.count += 1
            return


def random_prompts(count: int, seed: int, longest: int = 40) -> list[list[int]]:
    """Ragged prompts of random characters, lengths 1 to ``longest``."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=draw).tolist()
    return [torch.randint(2, len(TOKENS), (n,), generator=draw).tolist() for n in lengths]


def ring_pair(folder: Path) -> tuple[Path, Path]:
    """Two models whose weights make them always write the next of a b c \\n\\n a b c ...

    Attention and MLP write nothing, each token embeds as its own axis, the head rolls them on.
    """
    ring = [TOKENS.index(t) for t in ("a", "b", "c", "\n\n")]
    folders = []
    for role, shape in (("small", {**SMALL, "tied": False}), ("large", LARGE)):
        model = random_model(1, **shape)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "o_proj" in name or "down_proj" in name or "embed" in name or "head" in name:
                    weight.zero_()
            model.model.norm.weight.fill_(1.0)
            for token in range(len(TOKENS)):
                model.model.embed_tokens.weight[token, token] = 1.0
            for token, following in zip(ring, ring[1:] + ring[:1], strict=True):
                model.lm_head.weight[following, token] = 1.0
        folders.append(save(model, folder / role))
    return folders[0], folders[1]


@pytest.fixture
def engine() -> Engine:
    """The embedded pair, with its books proved at every step."""
    return Engine("tiny", config=EngineConfig(check_every=1))


@pytest.fixture(scope="session")
def make_pair() -> Callable[..., PairKit]:
    """``make_pair(folder, small=..., large=..., seed=0)`` writes two checkpoints."""

    def make(
        folder: Path, small: dict[str, Any] = SMALL, large: dict[str, Any] = LARGE, seed: int = 0
    ) -> PairKit:
        both = random_model(seed, **small), random_model(seed + 1000, **large)
        paths = save(both[0], folder / "small"), save(both[1], folder / "large")
        return PairKit(paths, {r: Oracle(m) for r, m in zip(ROLES, both, strict=True)})

    return make


@pytest.fixture(scope="session")
def pair(make_pair: Callable[..., PairKit], tmp_path_factory: pytest.TempPathFactory) -> PairKit:
    """The pair most tests use: head sizes 8 and 16, 2.67 small blocks in a large one."""
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def ring(tmp_path_factory: pytest.TempPathFactory) -> PairKit:
    """The pair whose text is known: each of a b c and a double newline follows the last."""
    return PairKit(ring_pair(tmp_path_factory.mktemp("ring")), {})


@pytest.fixture(scope="module")
def ties() -> Iterator[Ties]:
    """Counts the ties of a test file; more than one is no accident."""
    counted = Ties()
    yield counted
    assert counted.count <= 1, f"{counted.count} ties in {counted.compared} tokens"
    print(f"{counted.count} ties in {counted.compared} tokens")


@pytest.fixture(scope="session")
def prompts() -> Callable[..., list[list[int]]]:
    """``prompts(count, seed, longest=40)``: ragged random prompts."""
    return random_prompts


@pytest.fixture(scope="session")
def delimiters() -> tuple[str, ...]:
    """Delimiters that random text runs into often; one spans two tokens."""
    return DELIMITERS


@pytest.fixture(scope="session")
def same_text() -> Callable[..., None]:
    """``same_text(found, expected, leads, ties)``."""
    return equal_up_to_a_tie
