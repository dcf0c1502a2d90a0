"""A random model on the CPU kernels, and the same in fp64."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from kernels import cpu
from kernels.reference.layers import rope_tables
from kernels.types.attention import KVLayout

# Of the largest logit. In bf16 the oracle rounds where the kernels do: what is left are values so
# near the middle of two bf16 numbers that the order of fp32 sums decides.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """Of a random model; ``extras``: biases, and norms of queries and keys."""

    hidden: int = 40
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 10
    intermediate: int = 37
    vocabulary: int = 61
    layers: int = 2
    extras: bool = False
    block_tokens: int = 4


ODD = Shape()
RICH = Shape(
    hidden=33,
    heads=3,
    kv_heads=3,
    head_dim=6,
    intermediate=1,
    vocabulary=7,
    extras=True,
    block_tokens=5,
)
EVEN = Shape(
    hidden=192, heads=9, kv_heads=3, head_dim=64, intermediate=160, vocabulary=1100, block_tokens=16
)
WIDE = Shape(hidden=65, heads=5, kv_heads=1, head_dim=96, intermediate=530, extras=True, layers=1)
SHAPES = {"odd": ODD, "rich": RICH, "even": EVEN, "wide": WIDE}


class Model:
    """Random weights, and what they say in fp64."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self.generator = torch.Generator().manual_seed(1)
        s, fused = shape, (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        self.embedding = self.random(s.vocabulary, s.hidden, scale=1)
        self.head = self.random(s.vocabulary, s.hidden)
        self.norm = self.random(s.hidden, scale=0.2, mean=1)
        self.rope = rope_tables(1200, s.head_dim, 1e4, torch.float32)
        self.layers = [
            SimpleNamespace(
                attention_norm=self.random(s.hidden, scale=0.2, mean=1),
                qkv=self.random(fused, s.hidden),
                output=self.random(s.hidden, s.heads * s.head_dim),
                mlp_norm=self.random(s.hidden, scale=0.2, mean=1),
                gate_up=self.random(2 * s.intermediate, s.hidden),
                down=self.random(s.hidden, s.intermediate),
                qkv_bias=self.random(fused, scale=0.3) if s.extras else None,
                output_bias=self.random(s.hidden, scale=0.3) if s.extras else None,
                gate_up_bias=self.random(2 * s.intermediate, scale=0.3) if s.extras else None,
                down_bias=self.random(s.hidden, scale=0.3) if s.extras else None,
                query_norm=self.random(s.head_dim, scale=0.2, mean=1) if s.extras else None,
                key_norm=self.random(s.head_dim, scale=0.2, mean=1) if s.extras else None,
            )
            for _ in range(s.layers)
        ]

    def random(self, *size: int, scale: float | None = None, mean: float = 0) -> Tensor:
        scale = 2 / size[-1] ** 0.5 if scale is None else scale
        return (mean + scale * torch.randn(size, generator=self.generator)).to(self.dtype)

    def fast(self, **options: object) -> cpu.ForwardPass:
        return cpu.ForwardPass(
            self.embedding,
            self.norm,
            self.head,
            self.rope,
            self.layers,
            self.shape.heads,
            EPS,
            **options,
        )

    def rounded(self, x: Tensor) -> Tensor:
        """As activations are that feed a product."""
        return x.to(self.dtype).double()

    def normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight.double()

    def logits(self, text: Tensor) -> Tensor:
        """Of every position of one text, fp64."""
        x = self.embedding[text].double()
        for w in self.layers:
            h = self.rounded(self.normed(x, w.attention_norm))
            x = x + product(self.attend(product(h, w.qkv, w.qkv_bias), w), w.output, w.output_bias)
            h = self.rounded(self.normed(x, w.mlp_norm))
            gate, up = product(h, w.gate_up, w.gate_up_bias).chunk(2, -1)
            x = x + product(self.rounded(gate * gate.sigmoid() * up), w.down, w.down_bias)
        return self.rounded(self.normed(x, self.norm)) @ self.head.double().T

    def attend(self, qkv: Tensor, w: SimpleNamespace) -> Tensor:
        s, rows = self.shape, len(qkv)
        q, k, v = qkv.view(rows, -1, s.head_dim).split([s.heads, s.kv_heads, s.kv_heads], 1)
        if w.query_norm is not None:
            q, k = self.normed(q, w.query_norm), self.normed(k, w.key_norm)
        cosine, sine = self.rope[:, :rows, None].double()
        q, k, v = (self.rounded(t) for t in (turned(q, cosine, sine), turned(k, cosine, sine), v))
        k, v = (t.repeat_interleave(s.heads // s.kv_heads, 1).transpose(0, 1) for t in (k, v))
        score = q.transpose(0, 1) @ k.mT * s.head_dim**-0.5
        score = score.masked_fill(~torch.ones(rows, rows, dtype=torch.bool).tril(), -torch.inf)
        return self.rounded((score.softmax(-1) @ v).transpose(0, 1).reshape(rows, -1))


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = x @ weight.double().T
    return y if bias is None else y + bias.double()


def turned(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


class Texts:
    """Texts of a model in an arena of their own, whose blocks lie in no order."""

    def __init__(self, model: Model, lengths: list[int], room: int = 0) -> None:
        s = model.shape
        self.model = model
        self.texts = [torch.randint(s.vocabulary, (n,), generator=model.generator) for n in lengths]
        width = -(-max(*lengths, room) // s.block_tokens)
        block_rows = s.layers * 2 * s.kv_heads * s.block_tokens
        self.layout = KVLayout(
            s.layers, s.kv_heads, s.head_dim, s.block_tokens, 2, 2 * block_rows + 3
        )
        slabs = -(-len(lengths) * width // 2) + 1
        order = torch.randperm(2 * slabs, generator=model.generator)
        self.table = order[: len(lengths) * width].view(len(lengths), width).int()
        self.arena = torch.full(
            (slabs * self.layout.slab_rows, s.head_dim), torch.nan, dtype=model.dtype
        )

    def inputs(self, spans: dict[int, range]) -> tuple[Tensor, ...]:
        """Tokens, positions, sampled (all rows) and plan of a batch of spans by text."""
        at = torch.cat([torch.arange(r.start, r.stop) for r in spans.values()])
        owner = torch.tensor([i for i, r in spans.items() for _ in r])
        tokens = torch.stack([self.texts[i][j] for i, j in zip(owner, at, strict=True)])
        block = self.model.shape.block_tokens
        plan = SimpleNamespace(
            layout=self.layout,
            table=self.table[list(spans)],
            starts=torch.tensor([0, *(len(r) for r in spans.values())]).cumsum(0).int(),
            contexts=torch.tensor([r.stop for r in spans.values()]).int(),
            slots=self.table[owner, at // block] * block + (at % block).int(),
        )
        return tokens.int(), at.int(), torch.arange(len(at)).int(), plan

    def run(self, fast: cpu.ForwardPass, spans: dict[int, range]) -> Tensor:
        return fast.logits(*self.inputs(spans), self.arena)


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    error = (found.double() - expected).abs().amax() / expected.abs().amax()
    assert error < TOLERANCE[dtype]
