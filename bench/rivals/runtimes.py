"""One class per engine: loads a checkpoint and continues lists of token ids, greedily, to a length.

Each imports its modules when it is made, so that a process holds one engine and nothing else.
All end-of-sequence tokens are ignored: every engine writes the same number of tokens.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

Ids = list[int]
BLOCK_TOKENS = 16


@dataclass(frozen=True)
class Task:
    """The checkpoint and limits of a runtime.

    folder: a Hugging Face checkpoint. cache: where converted copies are kept.
    threads: to use. batch, context: the most sequences, and the most tokens of one.
    openvino: a folder that optimum-intel has converted, or "" to convert one here.
    """

    folder: str
    cache: str
    threads: int
    batch: int
    context: int
    openvino: str = ""


class MissingError(Exception):
    """The engine cannot run here; the text says what is missing."""


class Runtime(Protocol):
    """An engine with its model loaded."""

    weights: str  # the type that products read
    module: str  # the module to import
    package: str  # the distribution that usually has it

    def generate(self, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
        """``tokens`` new ids for each prompt; all prompts are equally long."""
        ...


def _need(*modules: str) -> None:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    if absent:
        raise MissingError(f"{' and '.join(absent)} not installed")


def distribution(module: str, usual: str) -> str:
    """The distribution that a module came with: builds of one library go by several names."""
    return next(iter(metadata.packages_distributions().get(module, ())), usual)


def _gguf(task: Task, dtype: str) -> Path:
    """The checkpoint as one GGUF file, converted on the first call. MissingError if it cannot."""
    from bench.rivals.gguf_file import write_gguf

    path = Path(task.cache) / f"model-{dtype}.gguf"
    if not path.is_file():
        try:
            write_gguf(Path(task.folder), path, dtype)
        except ValueError as error:
            raise MissingError(str(error)) from None
    return path


class Steer:
    """This engine, as a library; the large model writes all. The small one is never run."""

    weights = "bfloat16"
    module = "engine"
    package = "steer-engine"

    def __init__(self, task: Task) -> None:
        import torch

        from engine import Engine, EngineConfig

        torch.set_num_threads(task.threads)
        room = -(-task.context // BLOCK_TOKENS) * BLOCK_TOKENS
        config = EngineConfig(
            arena_tokens=2 * task.batch * room, max_context=room, prefix_cache=False
        )
        folder = Path(task.folder)
        self._engine = Engine("custom", small=folder, large=folder, config=config, dtype="bfloat16")

    def generate(self, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
        from engine import SamplingParams

        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        return [list(c.token_ids) for c in self._engine.generate(prompts, params, "large")]


class Transformers:
    """``transformers``: ``generate`` with its default cache."""

    weights = "bfloat16"
    module = "transformers"
    package = "transformers"

    def __init__(self, task: Task) -> None:
        _need("torch", "transformers")
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(task.threads)
        model: Any = AutoModelForCausalLM.from_pretrained(task.folder, dtype=torch.bfloat16)
        self._model = model.eval()

    def generate(self, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
        import torch

        ids = torch.tensor([*prompts])
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
            )
        found: list[Ids] = out[:, ids.shape[1] :].tolist()
        return found


class OpenVino:
    """OpenVINO GenAI, told to compute in bf16.

    It reads a copy that optimum-intel has converted, or a GGUF file in F16, made here: it reads no
    BF16 from GGUF.
    """

    weights = "bfloat16"
    module = "openvino_genai"
    package = "openvino-genai"

    def __init__(self, task: Task) -> None:
        _need("openvino_genai", *([] if task.openvino else ["gguf"]))
        copy = task.openvino or str(_gguf(task, "float16"))
        import openvino_genai

        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "INFERENCE_NUM_THREADS": task.threads,
        }
        self._pipeline = openvino_genai.LLMPipeline(copy, "CPU", **settings)

    def generate(self, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
        import numpy as np
        import openvino
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        ids = np.array(prompts, np.int64)
        inputs = openvino_genai.TokenizedInputs(
            openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids))
        )
        return [list(found) for found in self._pipeline.generate(inputs, config).tokens]


class CTranslate2:
    """CTranslate2. On a CPU it has no bf16: its products are in fp32."""

    weights = "float32"
    module = "ctranslate2"
    package = "ctranslate2"

    def __init__(self, task: Task) -> None:
        _need("ctranslate2", "transformers", "torch")
        import ctranslate2

        copy = Path(task.cache) / "ctranslate2"
        if not (copy / "model.bin").is_file():
            try:
                converter = ctranslate2.converters.TransformersConverter(task.folder)
                converter.convert(str(copy), quantization="float32", force=True)
            except Exception as error:  # an unknown family or release of transformers
                raise MissingError(f"its converter failed: {error}") from None
        self._generator = ctranslate2.Generator(
            str(copy), device="cpu", intra_threads=task.threads, compute_type="float32"
        )
        from transformers import AutoTokenizer

        self._tokens = AutoTokenizer.from_pretrained(task.folder).convert_ids_to_tokens

    def generate(self, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
        found = self._generator.generate_batch(
            [self._tokens(prompt) for prompt in prompts],
            max_length=tokens,
            min_length=tokens,
            include_prompt_in_result=False,
            beam_size=1,
        )
        return [list(result.sequences_ids[0]) for result in found]


class LlamaCpp:
    """llama.cpp with a BF16 file, through its C functions: its Python interface has no batches."""

    weights = "bfloat16"
    module = "llama_cpp"
    package = "llama-cpp-python"

    def __init__(self, task: Task) -> None:
        _need("llama_cpp", "gguf")
        import llama_cpp

        path = _gguf(task, "bfloat16")
        llama_cpp.llama_backend_init()
        self._lib: Any = llama_cpp
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = task.batch * (-(-task.context // 256) * 256)
        settings.n_batch = settings.n_ubatch = 2048
        settings.n_seq_max = task.batch
        settings.n_threads = settings.n_threads_batch = task.threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        self._batch = llama_cpp.llama_batch_init(task.batch * task.context, 0, 1)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self._model)
        )

    def generate(self, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
        lib = self._lib
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        found: list[Ids] = [[] for _ in prompts]
        following, position = [*prompts], 0
        for _ in range(tokens):
            following = [[token] for token in self._step(following, position)]
            position += len(prompts[0]) if position == 0 else 1
            for ids, new in zip(found, following, strict=True):
                ids += new
        return found

    def _step(self, texts: Sequence[Ids], position: int) -> Ids:
        """Decode equally long texts from ``position`` on; the likeliest next token of each."""
        import numpy as np

        batch, index, wanted = self._batch, 0, []
        for sequence, ids in enumerate(texts):
            for offset, token in enumerate(ids):
                batch.token[index], batch.pos[index] = token, position + offset
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
                batch.logits[index] = offset == len(ids) - 1
                index += 1
            wanted.append(index - 1)
        batch.n_tokens = index
        if self._lib.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        rows = (self._lib.llama_get_logits_ith(self._context, i) for i in wanted)
        return [int(np.ctypeslib.as_array(r, (self._vocabulary,)).argmax()) for r in rows]


class Vllm:
    """vLLM's build for CPUs, known by name or version. The one called just vllm is a CUDA build."""

    weights = "bfloat16"
    module = "vllm"
    package = "vllm"

    def __init__(self, task: Task) -> None:
        _need("vllm")
        name = distribution(self.module, self.package)
        if "cpu" not in f"{name} {metadata.version(name)}":
            raise MissingError("the installed vllm is no CPU build")
        import os

        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{task.threads - 1}"
        import vllm

        self._vllm: Any = vllm
        self._engine = vllm.LLM(
            task.folder,
            dtype="bfloat16",
            max_model_len=task.context,
            max_num_seqs=task.batch,
            enable_prefix_caching=False,
            gpu_memory_utilization=0.5,  # share of this machine's memory; the default is nearly all
        )

    def generate(self, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
        params = self._vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        texts = [{"prompt_token_ids": ids} for ids in prompts]
        done = self._engine.generate(texts, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in done]


RUNTIMES: dict[str, Any] = {
    "steer": Steer,
    "transformers": Transformers,
    "llama.cpp": LlamaCpp,
    "openvino": OpenVino,
    "ctranslate2": CTranslate2,
    "vllm": Vllm,
}
