"""What the gates of ``kernels.confidence`` and ``kernels.lm_head`` share: the merge of tiles."""

from __future__ import annotations


def merge_signature(logits: str) -> dict[str, str]:
    """Types of ``merge_rows``'s arguments for logits of one type, for the variants."""
    return {
        "logits": logits,
        "partials": "*fp32",
        "firsts": "*i32",
        "temperatures": "*fp64",
        "values": "*fp32",
        "argmax": "*i64",
        "token": "*i64",
        "valid": "*i8",
        "rows": "i32",
        "tiles": "i32",
        "head_rows": "i32",
        "vocabulary": "i32",
        "stride": "i32",
    }
