"""What a tick's draws need besides the logits, as arrays on the host: made before the tick runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine._core import LARGE
from engine.execution.regions import Array
from engine.execution.sampled_rows import History, Int32, SampledRows
from engine.params import SamplingParams
from kernels import ops

_NO_HISTORY = History(np.empty(0, np.int32), np.empty(0, np.int32), unread=False)
COLUMN_WORDS = 2 * 12  # of a row in the columns below: 8 bytes for each of 12 numbers at most
COLUMNS = 10  # at most

Chunk = dict[str, Array]


def draw_columns(rows: SampledRows, model: int) -> Chunk:
    """The columns of ``ops.DrawRows``; and ``asked``: int64, the rows whose log-probabilities are
    needed; ``verified`` and ``guess``: int64, the rows with guesses that may stand, and these;
    ``least``: fp64, how far a guess's logit may lie from the highest, below 0. None that no row
    needs."""
    columns: Chunk = {} if rows.likeliest else _keyed(rows, model)
    if rows.asked:
        columns["asked"] = np.array([*rows.asked], np.int64)
    if rows.verified:
        marks = np.array([rows.draws[i].mark for i in rows.verified])
        columns["verified"] = np.array([*rows.verified], np.int64)
        columns["guess"] = np.array([*rows.verified.values()], np.int64)
        with np.errstate(divide="ignore"):  # at mark 0 every guess stands
            columns["least"] = np.log(marks)
    return columns


def _keyed(rows: SampledRows, model: int) -> Chunk:
    params = [draw.params for draw in rows.draws]
    counter = np.empty((len(params), 3), np.int64)
    counter[:, 0] = [draw.sample for draw in rows.draws]
    counter[:, 1] = rows.contexts
    counter[:, 2] = 2 * rows.attempts.astype(np.int64) + np.where(rows.guesses, LARGE, model)
    columns: Chunk = {
        "temperature": _reals(p.temperature for p in params),
        "key": np.array([draw.draw_key for draw in rows.draws], np.uint64).view(np.int64),
        "counter": counter,
    }
    if any(p.top_k for p in params):
        columns["top_k"] = np.array([p.top_k for p in params], np.int64)
    if any(p.top_p < 1 for p in params):
        columns["top_p"] = _reals(p.top_p for p in params)
    if any(p.min_p for p in params):
        columns["min_p"] = _reals(p.min_p for p in params)
    return columns


def draws_of(columns: Mapping[str, Tensor]) -> ops.DrawRows:
    """The draws from their columns on the device, which may hold more."""
    names = ops.DrawRows.__dataclass_fields__
    return ops.DrawRows(**{name: columns[name] for name in names if name in columns})


def penalty_arrays(rows: SampledRows, some: Sequence[int], seen: Mapping[int, History]) -> Chunk:
    """Penalties and biases of ``some`` rows; a pair (n, token id) is of the n-th of them.

    index: int64 [some]; repetition, presence, frequency: fp64 [some].
    prompt, generated, biased: int32 [2, pairs]; bias: fp64 [pairs of ``biased``].
    unread: int64 [2, pairs], (n, row) of those whose last token only the device knows.

    Args:
        seen: histories by row, where penalties need earlier tokens.
    """
    params: list[SamplingParams] = [rows.draws[i].params for i in some]
    histories = [seen.get(i, _NO_HISTORY) for i in some]
    unread = [(n, some[n]) for n, history in enumerate(histories) if history.unread]
    return {
        "index": np.array(some, np.int64),
        "repetition": _reals(p.repetition_penalty for p in params),
        "presence": _reals(p.presence_penalty for p in params),
        "frequency": _reals(p.frequency_penalty for p in params),
        "prompt": _pairs([h.prompt for h in histories]),
        "generated": _pairs([h.generated for h in histories]),
        "unread": np.array(unread, np.int64).reshape(-1, 2).T.copy(),
        "biased": _pairs([np.array([*p.logit_bias], np.int32) for p in params]),
        "bias": _reals(bias for p in params for bias in p.logit_bias.values()),
    }


def penalties_of(arrays: Mapping[str, Tensor], last: Tensor) -> ops.PenaltyRows:
    """The penalties from their arrays on the device; ``last``: int32 [rows], tokens read last."""
    generated, unread = arrays["generated"].long(), arrays["unread"]
    if unread.shape[1]:  # drawn by the previous tick
        tokens = last.index_select(0, unread[1]).long().clamp(min=0)
        generated = torch.cat([generated, torch.stack([unread[0], tokens])], 1)
    return ops.PenaltyRows(
        repetition=arrays["repetition"],
        presence=arrays["presence"],
        frequency=arrays["frequency"],
        prompt=arrays["prompt"].long(),
        generated=generated,
        biased=arrays["biased"].long(),
        bias=arrays["bias"],
    )


def bans(rows: SampledRows) -> Int32:
    """(row, token id) of the tokens that would end a text too early, int32 [2, pairs]."""
    banned = _pairs([np.array(rows.draws[i].stop_ids, np.int32) for i in rows.early])
    banned[0] = np.array(rows.early, np.int32)[banned[0]]
    return banned


def _reals(values: Iterable[float]) -> npt.NDArray[np.float64]:
    return np.array([*values], np.float64)


def _pairs(tokens: Sequence[Int32]) -> Int32:
    """(place in the list, token id) of all tokens, int32 [2, tokens]."""
    pairs = np.empty((2, sum(map(len, tokens))), np.int32)
    pairs[0] = np.repeat(np.arange(len(tokens)), [len(t) for t in tokens])
    np.concatenate(tokens, out=pairs[1])
    return pairs
