"""Shape and schedule of the two models of the embedded pair."""

from __future__ import annotations

from dataclasses import dataclass

from bench.tasks.problem import Mix
from bench.tasks.tokenizer import ALPHABET


@dataclass(frozen=True)
class Spec:
    """One model: its shape, its data and its schedule, counted in updates."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    look_back: tuple[int, ...]  # distances that the first layer's first heads start out with
    seeds: tuple[int, ...]
    adam_lr: float
    autocast: bool
    shares: dict[str, float]  # of the batches, by task
    mixes: dict[str, Mix]  # easy, medium and hard steps, by task
    short: int  # first updates, in which hops and planning have at most four steps
    updates: int
    decay: int  # the last of them, in which the learning rate falls to nothing


# The small model sees few hard steps, so that it knows its limits. Each heads' row is a token.
SMALL = Spec(
    "small", 64, 2, 4, 2, 112, len(ALPHABET), (1, 2), (5,), 3e-3, False,
    {"arithmetic": 0.4, "hops": 0.35, "planning": 0.25},
    {"arithmetic": (0.65, 0.23, 0.12), "hops": (0.6, 0.28, 0.12), "planning": (0.7, 0.18, 0.12)},
    1500, 9000, 2000,
)  # fmt: skip
# Six head rows beyond the tokenizer, as the larger Qwen2.5 heads have: padding ids are real.
LARGE = Spec(
    "large", 128, 4, 4, 2, 352, len(ALPHABET) + 6, (1, 2, 3), (1,), 2e-3, True,
    {"arithmetic": 0.3, "hops": 0.4, "planning": 0.3},
    {"arithmetic": (0.45, 0.2, 0.35), "hops": (0.35, 0.25, 0.4), "planning": (0.5, 0.15, 0.35)},
    1200, 9000, 2000,
)  # fmt: skip
