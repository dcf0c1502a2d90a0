"""A Llama checkpoint as a GGUF file, for llama.cpp and OpenVINO. Not for prompts as text.

Sources: the GGUF specification and llama.cpp's names of tensors; its rotary pairs are neighbours,
those of a Hugging Face checkpoint lie half a head apart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMAL, _CONTROL = 1, 3  # token types of the specification
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(folder: Path, target: Path, dtype: str = "bfloat16") -> None:
    """Convert a single-file bf16 checkpoint of the Llama family.

    dtype: of matrices, "bfloat16", or "float16" for readers that know no BF16; norms are fp32.
    ValueError on other checkpoints, and on weights that float16 cannot hold.
    """
    import gguf

    config = json.loads((folder / "config.json").read_text())
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    plain = rope.get("rope_type", "default") == "default"
    if config["model_type"] != "llama" or not plain:
        raise ValueError(f"{folder}: only plain Llama checkpoints are converted to GGUF")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    _write_config(writer, {**rope, **config})
    if dtype == "float16":
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _write_vocabulary(writer, folder, config)
    for name, (kind, shape, data) in _tensors(folder).items():
        renamed = _name(name)
        if kind != "BF16":
            raise ValueError(f"{folder}: {name} is {kind}; only bf16 is converted to GGUF")
        values = np.frombuffer(data, np.uint16).reshape(shape)
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
        if (field := heads.get(renamed.split(".")[-1])) is not None:
            values = _neighbours(values, config[field])
        if len(shape) == 1:
            writer.add_tensor(f"{renamed}.weight", _wide(values))
        elif dtype == "float16":
            writer.add_tensor(f"{renamed}.weight", _half(values, f"{folder}: {name}"))
        else:
            stored = np.ascontiguousarray(values).view(np.uint8)
            kept = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(f"{renamed}.weight", stored, raw_shape=stored.shape, raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)


def _name(name: str) -> str:
    """The GGUF name for a Hugging Face tensor name, both without the part after the last dot."""
    parts = name.removesuffix(".weight").split(".", 3)
    if parts[:2] != ["model", "layers"]:
        return _TOP[name.removesuffix(".weight")]
    return f"blk.{parts[2]}.{_LAYER[parts[3]]}"


def _wide(bits: Any) -> Any:
    """fp32 of the bits of bf16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _half(bits: Any, where: str) -> Any:
    """fp16 of the bits of bf16: values below its smallest step become 0."""
    wide = _wide(bits)
    if not (np.abs(wide) <= np.finfo(np.float16).max).all():
        raise ValueError(f"{where} has weights that float16 cannot hold")
    return wide.astype(np.float16)


def _write_config(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])


def _write_vocabulary(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    model, added = raw["model"], raw.get("added_tokens", [])
    names = {i: t for t, i in model["vocab"].items()} | {t["id"]: t["content"] for t in added}
    special = {t["id"] for t in added if t["special"]}
    tokens = [names.get(i, f"<unused {i}>") for i in range(config["vocab_size"])]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    # OpenVINO builds a tokenizer from these and fails to compile it if none is special.
    writer.add_token_types([_CONTROL if i in special else _NORMAL for i in range(len(tokens))])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(config["eos_token_id"])


def _tensors(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes by name; numpy has no bf16, so the file's raw bytes are read."""
    content = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    return {
        name: (e["dtype"], e["shape"], content[slice(*(8 + size + o for o in e["data_offsets"]))])
        for name, e in header.items()
    }


def _neighbours(weight: Any, heads: int) -> Any:
    """Reorder the rotary pairs of a head: from half a head apart to neighbours."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)
