"""Shapes of schedulers and requests, drawn from bytes."""

from __future__ import annotations

from hypothesis import strategies as st

from .kinds import LARGE, NOBODY, SMALL, WHOLE
from .model_scheduler import Shape
from .model_text import Request
from .model_turns import Lanes


class Dice:
    """Choices from bytes: zeros give the simplest of everything, and bytes shrink well."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def below(self, limit: int) -> int:
        byte = self.data[self.at % len(self.data)]
        self.at += 1
        return byte % limit

    def pick(self, *options):
        return options[self.below(len(options))]


def dice(size: int) -> st.SearchStrategy[Dice]:
    return st.binary(min_size=size, max_size=size).map(Dice)


def draw_shape(dice: Dice) -> Shape:
    size, slots = dice.pick(4, 4, 3, 1, 8), dice.pick((9, 1), (7, 2))
    context, sequences = dice.pick(48, 24, 64), dice.pick(7, 4, 2, 1)
    one = -(-context // (size * min(slots)))  # slabs that hold one request of full length
    ample = 2 * (sequences + 1) * -(-context // size)
    return Shape(
        slabs=dice.pick(ample, one, one + 1, one + 3, max(1, one - 2)),
        slots=slots,
        size=size,
        context=context,
        sequences=sequences,
        queue=dice.pick(0, 0, 4),
        budget=sequences + dice.pick(57, 1, 9),
        drawn=dice.pick(0, 0, sequences, sequences + 2),
        prefix_cache=dice.pick(False, True),
        background=dice.pick((0, 0), (1, 0), (0, 1), (2, 5), (1, 1)),
        lanes=Lanes(
            lane_policy=dice.pick("latency", "weighted", "throughput", "auto"),
            gather=dice.pick(0, 1, 3),
            hold_ticks=dice.pick(32, 1, 4),
            automatic_from=dice.pick(3, 0, 1),
            tick_cost=dice.pick((1.0, 1.0), (1.0, 6.0)),
            lane_weight=dice.pick((1.0, 1.0), (1.0, 3.0)),
        ),
    )


def draw_request(dice: Dice, shape: Shape) -> Request:
    longest = min(shape.context, shape.holds)
    prompt = [dice.pick(0, 0, 1, 2, 3, 4) for _ in range(1 + dice.below(min(12, longest - 1)))]
    if shape.prefix_cache and dice.below(4):  # beginnings in common
        prompt = ([1, 1, 2, 0, 3, 1, 2, 2] * 2)[: len(prompt)]
    room = longest - len(prompt)
    max_tokens = dice.pick(min(6, room), room, 1 + dice.below(room), 1 + dice.below(room))
    reader = dice.pick(NOBODY, SMALL, SMALL, LARGE)
    trial = min(dice.pick(0, 0, 1, 2, 5, WHOLE), max_tokens) if reader != NOBODY else 0
    think_end = dice.pick([], [], [0, 1], [0, 0], [4], [2, 3, 7])
    drafts, source = dice.pick(0, 0, 3, 1, 7), dice.pick("small", "small", "both", "lookup")
    verified = drafts > 0 and source == "small" and reader != LARGE
    return Request(
        prompt=prompt,
        max_tokens=max_tokens,
        stop_ids=dice.pick([], [7], [7, 5]),
        reader=reader,
        priority=dice.pick(0, 0, 0, -1, 1),
        settle_at_once=dice.pick(True, False),
        stop_strings=dice.pick((), (), (b"ab\n",), (b"cc", b"bab"), (b"\n\nb", b"a\n")),
        min_tokens=dice.pick(0, 0, 1, 4, 9),
        max_step_tokens=dice.pick(0, 0, 1, 3, 5),
        trial_tokens=trial,
        think_end=think_end,
        think_closed=dice.pick(False, False, False, True),
        max_think_tokens=dice.pick(0, 1, 3, 9) if think_end else 0,
        max_repeats=dice.pick(0, 0, 2, 9),
        ahead=dice.pick(True, True, True, False),
        draft_tokens=drafts,
        draft_source=source,
        verified=verified and dice.pick(False, True),
        finishes_step=dice.pick(False, True),
    )


def nonsense(shape: Shape, prompt: int) -> list[tuple[dict, str]]:
    """Fields that make a request with so long a prompt impossible, and what is said to them."""
    too_long = "exceed the context" if shape.context <= shape.holds else "the arena holds"
    over = min(shape.context, shape.holds) - prompt + 1
    never = [({"samples": shape.queue + 1}, "can never be queued")] if shape.queue else []
    return [
        ({"prompt": []}, "prompt is empty"),
        ({"max_tokens": 0, "trial_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_tokens": over}, too_long),
        ({"reader": 2}, "reader must be"),
        ({"reader": -2}, "reader must be"),
        ({"min_tokens": -1}, "must be 0 or more"),
        ({"max_step_tokens": -1}, "must be 0 or more"),
        ({"max_think_tokens": -1}, "must be 0 or more"),
        ({"max_think_tokens": 3, "think_end": []}, "needs the tokens"),
        ({"max_repeats": 1}, "at least 2"),
        ({"max_repeats": -1}, "at least 2"),
        ({"max_tokens": 1, "reader": SMALL, "trial_tokens": 2}, "a trial must be"),
        ({"reader": SMALL, "trial_tokens": -2}, "a trial must be"),
        ({"reader": NOBODY, "trial_tokens": 1}, "needs a reader"),
        ({"samples": 0}, "samples must be"),
        ({"draft_tokens": -1}, "draft_tokens must be 0"),
        ({"draft_tokens": 16}, "draft_tokens must be 0"),
        ({"verified": True, "draft_tokens": 0}, "guesses what the large one verifies"),
        ({"verified": True, "draft_tokens": 2, "draft_source": "both"}, "guesses what the large"),
        (
            {"verified": True, "draft_tokens": 2, "draft_source": "small", "reader": LARGE},
            "cannot be the reader as well",
        ),
        ({"draft_source": "text"}, "unknown draft source 'text'; known: small, lookup, both"),
        ({"stop_strings": [b"a", b""]}, "must not be empty"),
        *never,
    ]
