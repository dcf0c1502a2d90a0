"""Writes GGUF files from random models and byte-level tokenizers, with the format's own package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config

MERGES = (("h", "e"), ("t", "he"), ("Ġ", "the"), ("1", "2"), ("12", "3"))
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
TOKENS = [
    *sorted(pre_tokenizers.ByteLevel.alphabet()),
    *map("".join, MERGES),
    *SPECIAL,
    "<tool>",
    "[PAD265]",
]
KINDS = [NORMAL] * (len(TOKENS) - 5) + [CONTROL] * 3 + [USER_DEFINED, UNUSED]
END = TOKENS.index("<|im_end|>")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
CONFIGS = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}
SHAPE = {
    "vocab_size": len(TOKENS),
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
}
# Of a block, where the fp16 scales stand: random bytes there would not be numbers.
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def random_model(architecture: str, seed: int = 0, **settings: Any) -> Any:
    """A model of transformers, fp32, whose weights are as initialised."""
    torch.manual_seed(seed)
    config = CONFIGS[architecture](**SHAPE | settings)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def random_blocks(name: str, count: int, seed: int = 0) -> np.ndarray:
    """uint8 [count, bytes of a block] of any format, with scales around a hundredth."""
    rng = np.random.default_rng(seed)
    size = GGML_QUANT_SIZES[GGMLQuantizationType[name]][1]
    blocks = rng.integers(0, 256, (count, size), np.uint8)
    for place in SCALES[name]:
        scale = rng.uniform(-0.02, 0.02, count).astype(np.float16)
        blocks[:, place : place + 2] = scale[:, None].view(np.uint8)
    return blocks


def encoded(weight: np.ndarray, name: str) -> np.ndarray:
    """A weight in a format; of formats that the package does not write, random blocks as large."""
    kind = GGMLQuantizationType[name]
    if name not in SCALES:
        return quantize(weight, kind)
    block, size = GGML_QUANT_SIZES[kind]
    rows = weight.shape[0]
    return random_blocks(name, weight.size // block).reshape(rows, -1, size).reshape(rows, -1)


def write_gguf(
    path: Path,
    model: Any,
    format_of: Callable[[str], str] = lambda name: "F32",
    change: Callable[[GGUFWriter], None] = lambda writer: None,
    **writer: Any,
) -> Path:
    """A model as llama.cpp's converter writes it, matrices in the format that is asked for.

    ``change`` may add to the writer before it writes; others go to the writer itself.
    """
    architecture = model.config.model_type
    made = GGUFWriter(path, architecture, **writer)
    _add_metadata(made, model.config)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        stem, kind = name.rsplit(".", 1)
        parts = stem.split(".")
        layer = f"blk.{parts[2]}." if "layers" in parts else ""
        short = _NAMES[".".join(parts[3:]) if layer else stem]
        if architecture == "llama" and short in ("attn_q", "attn_k"):
            heads = model.config.num_attention_heads
            tensor = interleaved(
                tensor, heads if short == "attn_q" else SHAPE["num_key_value_heads"]
            )
        data = tensor.numpy()
        full = f"{layer}{short}.{kind}"
        name = format_of(full) if data.ndim == 2 else "F32"
        made.add_tensor(full, encoded(data, name), raw_dtype=GGMLQuantizationType[name])
    change(made)
    made.write_header_to_file(path)
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return path


def _add_metadata(writer: GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(width)
    writer.add_value_length(width)
    add_tokenizer(writer, TOKENS, KINDS, "qwen2")


def add_tokenizer(
    writer: GGUFWriter,
    tokens: Sequence[str],
    kinds: Sequence[int],
    pre: str,
    template: str | Sequence[Mapping[str, str]] = TEMPLATE,
) -> None:
    """A byte-level tokenizer of these tokens."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(kinds))
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_eos_token_id(END)
    writer.add_pad_token_id(tokens.index(SPECIAL[0]))
    writer.add_chat_template(template)


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary halves of a head to neighbours: llama.cpp's order in files of the Llama family."""
    halves = weight.reshape(heads, 2, len(weight) // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)
