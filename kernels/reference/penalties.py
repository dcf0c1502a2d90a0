"""What a request wants changed in its logits: penalties on earlier tokens, then biases.

The repetition penalty is that of Keskar et al. (CTRL, arXiv 1909.05858) with the sign rule of
transformers' RepetitionPenaltyLogitsProcessor; presence, frequency and bias are those of OpenAI's
completions API.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.types.sampling import PenaltyRows


def penalise(logits: Tensor, vocabulary: int, rows: PenaltyRows) -> Tensor:
    """The logits to sample from, fp64 [rows, vocabulary]; ``logits`` stay as they are.

    In this order: a token of the prompt or of the generated text has a positive logit divided by
    ``repetition``, another one multiplied; a generated token loses ``frequency`` for each time that
    it was generated, and ``presence`` once; ``bias`` is added. A row depends on its own pairs only.

    Args:
        logits: [rows, head_rows], any float dtype, without NaN and +inf; -inf stays -inf.
        vocabulary: ids from here on are padding of the head and are cut off.
        rows: see above; ids below ``vocabulary``.
    """
    z = logits[:, :vocabulary].double()
    count = torch.zeros_like(z)
    count.index_put_(tuple(rows.generated), z.new_ones(()), accumulate=True)
    seen = count > 0
    seen.index_put_(tuple(rows.prompt), seen.new_ones(()))
    rule = rows.repetition[:, None]
    # An extreme penalty stops at the largest number: infinities would not leave a distribution.
    limit = torch.finfo(z.dtype).max
    repeated = torch.where(z > 0, z / rule, z * rule).clamp(-limit, limit)
    z = torch.where(seen & z.isfinite(), repeated, z)
    z = z - rows.frequency[:, None] * count - rows.presence[:, None] * (count > 0)
    return z.index_put_(tuple(rows.biased), rows.bias, accumulate=True)
