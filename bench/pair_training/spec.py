"""Shapes and schedules: each model of the embedded pair is joined of two halves."""

from __future__ import annotations

from dataclasses import dataclass

from bench.tasks.problem import Mix
from bench.tasks.tokenizer import ALPHABET

PADDING = 6  # head rows of the large model beyond the tokenizer, as larger Qwen2.5 heads have


@dataclass(frozen=True)
class Spec:
    """One half of a model: its shape, its data and its schedule, counted in updates."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
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
    decay: int  # last updates, in which the learning rate falls
    grown: int = 0  # updates of the small graphs half, first seed, from which this one grows
    taught: int = 0  # the layer that is also taught what a single look-up finds


_GRAPHS = {"hops": 0.55, "planning": 0.45}
# The small model sees few hard steps, so that it knows its limits: easy steps are solid and hard
# ones are not.
SMALL = (
    Spec(
        "numbers",
        48,
        2,
        3,
        1,
        16,
        144,
        len(ALPHABET),
        (),
        (2, 5, 7),
        3e-3,
        False,
        {"arithmetic": 1.0},
        {"arithmetic": (0.65, 0.23, 0.12)},
        0,
        6000,
        5900,
    ),
    Spec(
        "graphs",
        64,
        2,
        4,
        4,
        16,
        112,
        len(ALPHABET),
        (1, 2, 3),
        (5,),
        3e-3,
        False,
        _GRAPHS,
        {"hops": (0.6, 0.28, 0.12), "planning": (0.86, 0.1, 0.04)},
        1000,
        6000,
        1200,
    ),
)
LARGE = (
    Spec(
        "numbers",
        192,
        4,
        6,
        2,
        32,
        512,
        len(ALPHABET) + PADDING,
        (),
        (1,),
        2e-3,
        True,
        {"arithmetic": 1.0},
        {"arithmetic": (0.45, 0.2, 0.35)},
        0,
        3800,
        3700,
    ),
    Spec(
        "graphs",
        96,
        3,
        4,
        4,
        32,
        256,
        len(ALPHABET) + PADDING,
        (),
        (1,),
        2e-3,
        False,
        _GRAPHS,
        {"hops": (0.2, 0.1, 0.7), "planning": (0.3, 0.1, 0.6)},
        600,
        3600,
        1100,
        3600,
        2,
    ),
)
ROLES = {"small": SMALL, "large": LARGE}
