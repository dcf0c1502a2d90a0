"""Every score of a step: the small model's signals over windows, and the large model's reading."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from bench.step_signals.answers import Answer
from engine import Engine, Window
from engine.request import TokenLogprobs
from engine.routing.audit import SCORES, step_score
from engine.routing.signals import SIGNAL_NAMES, Signals
from engine.routing.speculation import MARK
from engine.text.maths import maths_tokens

PROBES = (2, 4, 8)
WINDOWS = tuple(
    map(
        Window.parse,
        ["boundary", "step", "step:least"]
        + [f"probe:{k}{least}" for k in PROBES for least in ("", ":least")],
    )
)
# Windows that no policy has: the whole step that is judged, and the large model's reading of it.
WHOLE, LEAST, MATHS, READ = "whole", "whole:least", "whole:maths", "read"

Score = tuple[str, str]  # signal and window
IdMask = Callable[[Sequence[int]], Sequence[bool]]  # of a step's ids, which ones count


def maths_mask(engine: Engine) -> IdMask:
    """The default rule for maths tokens, on a step's ids."""
    return lambda ids: maths_tokens([engine.tokenizer.bytes_of([i]) for i in ids])


def step_scores(answer: Answer, step: int, is_maths: IdMask) -> dict[Score, float]:
    """The scores of a step that has them, by signal and window; higher is surer.

    Windows that policies have: see ``engine.routing.windows``. ``step`` is the step before. Others:

    * ``whole``, ``whole:least``: mean and least over all tokens of the step itself. The mean of the
      entropy is the entropy rate. Only ``max_logit`` also has ``whole:maths``, over the tokens
      that ``engine.text.maths`` counts.
    * ``read``, the large model's reading: ``min``, ``mean`` and ``ratio`` as in an audit;
      ``agreement``, the share of tokens that are the large model's likeliest; ``worst``, the lowest
      log p_large - log p_best; ``disbelieved``, tokens before the first one with p_large below 0.3
      of p_best, the mark of ``verify``; infinite if there is none.
    """
    sample, own = answer.sample, answer.signals(step)
    scores: dict[Score, float] = {}
    for window in WINDOWS:
        scores |= _of(sample.seen(window, step), str(window))
    scores |= _of(Signals.mean(own), WHOLE) | _of(Signals.least(own), LEAST)
    ids = answer.completion.steps[step].token_ids
    maths = [s.max_logit for s, counts in zip(own, is_maths(ids), strict=True) if counts]
    if maths:
        scores["max_logit", MATHS] = fmean(maths)
    read = answer.reading(step)
    return scores | dict(_of_reading(own, ids, read)) if read else scores


def _of(signals: Signals | None, window: str) -> dict[Score, float]:
    if signals is None:
        return {}
    signs = {name: -1.0 if name == "entropy" else 1.0 for name in SIGNAL_NAMES}
    return {(name, window): signs[name] * getattr(signals, name) for name in SIGNAL_NAMES}


def _of_reading(
    own: list[Signals], ids: tuple[int, ...], read: tuple[TokenLogprobs, ...]
) -> Iterator[tuple[Score, float]]:
    large = [-math.inf if each.logprob is None else each.logprob for each in read]
    # A greedy token is the likeliest one: its probability is max_prob.
    small = [math.log(max(signals.max_prob, 1e-30)) for signals in own]
    pairs = list(zip(small, large, strict=True))
    for kind in SCORES:
        yield (kind, READ), step_score(kind, pairs)
    best, most = zip(*(each.top[0] for each in read), strict=True)
    yield ("agreement", READ), fmean(a == b for a, b in zip(ids, best, strict=True))
    ratios = [value - highest for value, highest in zip(large, most, strict=True)]
    yield ("worst", READ), min(ratios)
    doubted = (float(i) for i, ratio in enumerate(ratios) if ratio < math.log(MARK))
    yield ("disbelieved", READ), next(doubted, math.inf)
