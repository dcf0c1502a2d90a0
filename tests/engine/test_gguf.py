"""GGUF files as checkpoints: what transformers' own loader makes of them, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GgufConfig

from engine import Engine, EngineConfig, SamplingParams, SteerError
from engine.gguf.header import read_header
from engine.models.checkpoint import load_config, load_weights
from engine.models.rope import frequencies

from .gguf_files import END, SHAPE, TOKENS, random_model, write_gguf

CONFIG = EngineConfig(arena_tokens=2048)


LINEAR = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


BLOCKS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def mixed(*names: str) -> Callable[[str], str]:
    """Formats in turn, as files mix them."""
    seen: list[str] = []

    def format_of(name: str) -> str:
        seen.append(name)
        return names[len(seen) % len(names)]

    return format_of


CASES: dict[str, tuple[str, dict[str, Any], Callable[[str], str]]] = {
    "qwen2": ("qwen2", {}, mixed("F32")),
    "qwen2 tied, linear formats": ("qwen2", {"tie_word_embeddings": True}, mixed(*LINEAR)),
    "qwen3, heads of their own": ("qwen3", {"head_dim": 128}, mixed("Q6_K", "BF16")),
    "qwen3, blocks": ("qwen3", {"head_dim": 128}, mixed(*BLOCKS)),
    "llama": ("llama", {}, mixed("F16")),
    "llama tied, all formats": ("llama", {"tie_word_embeddings": True}, mixed(*LINEAR, *BLOCKS)),
}


def folder_of_transformers(path: Path) -> Path:
    """What transformers reads out of a file, as a checkpoint folder. It saves none itself."""
    oracle = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    folder = path.with_suffix("")
    folder.mkdir()
    config = {k: v for k, v in oracle.config.to_dict().items() if k != "quantization_config"}
    config["architectures"] = [type(oracle).__name__]
    (folder / "config.json").write_text(json.dumps(config))
    tied = oracle.config.tie_word_embeddings
    kept = {n: t for n, t in oracle.state_dict().items() if n != "lm_head.weight" or not tied}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_file_is_the_folder_that_transformers_makes_of_it(case: str, tmp_path: Path):
    """Every weight and the shape, to the bit."""
    architecture, settings, format_of = CASES[case]
    path = write_gguf(tmp_path / "m.gguf", random_model(architecture, **settings), format_of)
    folder = folder_of_transformers(path)
    mine, theirs = load_config(path), load_config(folder)
    for field in vars(theirs):
        if field not in ("eos_ids", "max_position"):
            pair = getattr(mine, field), getattr(theirs, field)
            same = np.float32(pair[0]) == np.float32(pair[1]) if field == "norm_eps" else False
            assert same or pair[0] == pair[1], field
    assert mine.max_position == SHAPE["max_position_embeddings"] and mine.eos_ids == (
        TOKENS.index("<|endoftext|>"),
        END,
    )
    found = load_weights(path, mine, torch.float32)
    expected = load_weights(folder, theirs, torch.float32)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pair_of_files_writes_what_its_models_write(dtype: str, tmp_path: Path):
    """Greedy text of both models: transformers' at fp32."""
    models = random_model("qwen2"), random_model("llama", seed=1)
    small, large = (write_gguf(tmp_path / f"{n}.gguf", model) for n, model in enumerate(models))
    engine = Engine("custom", small=small, large=large, config=CONFIG, dtype=dtype)
    ids = engine.tokenizer.encode("the 123 cat")
    for model, policy in zip(models, ("small", "large"), strict=True):
        (done,) = engine.generate([ids], SamplingParams(max_tokens=12), policy)
        assert done.token_ids
        if dtype == "float32":
            tokens = torch.tensor([[*ids, *done.token_ids]])
            logits = model(tokens).logits[0, len(ids) - 1 : -1]
            assert logits.argmax(-1).tolist() == list(done.token_ids)
    assert engine.tokenizer.chat([{"role": "user", "content": "hi"}])[-1] == END


def test_a_file_beside_a_folder(tmp_path: Path):
    """Their tokenizers are the same, so text can cross."""
    path = write_gguf(tmp_path / "m.gguf", random_model("llama"))
    folder = tmp_path / "folder"
    random_model("llama", seed=1).save_pretrained(folder)
    engine = Engine("custom", small=path, large=path, config=CONFIG)
    (folder / "tokenizer.json").write_text(engine.tokenizer.to_json())
    mixed_pair = Engine("custom", small=path, large=folder, config=CONFIG)
    assert mixed_pair.generate(["the"], SamplingParams(max_tokens=4), "large")


def test_splits(tmp_path: Path):
    """As llama.cpp splits them; any part missing or another one in its place is named."""
    model = random_model("qwen2")
    whole = write_gguf(tmp_path / "whole.gguf", model)
    write_gguf(tmp_path / "part.gguf", model, split_max_tensors=10)
    parts = sorted(tmp_path.glob("part-*.gguf"))
    assert len(parts) == 3 and parts[0].name == "part-00001-of-00003.gguf"
    config = load_config(parts[0])
    assert config == load_config(whole)
    expected = load_weights(whole, config, torch.float32)
    for name, tensor in load_weights(parts[0], config, torch.float32).items():
        assert torch.equal(expected[name], tensor), name
    data = parts[1].read_bytes()
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(
        SteerError, match=r"00002-of-00003\.gguf: is part 3 of 3 by its metadata, part 2"
    ):
        load_config(parts[0])
    parts[1].unlink()
    with pytest.raises(SteerError, match=r"part-00002-of-00003\.gguf: no such GGUF file, part of"):
        load_config(parts[0])
    with pytest.raises(SteerError, match="there is no part 4 of 3"):
        load_config(tmp_path / "part-00004-of-00003.gguf")
    with pytest.raises(SteerError, match="there is no part 0 of 0"):
        load_config(tmp_path / "part-00000-of-00000.gguf")
    parts[1].write_bytes(data)
    parts[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(
        SteerError, match="is part 1 of 3 by its metadata, a whole file by its name"
    ):
        load_config(tmp_path / "alone.gguf")


def test_the_header_says_what_the_formats_own_package_says(tmp_path: Path):
    path = write_gguf(tmp_path / "m.gguf", random_model("qwen3"), mixed(*LINEAR, *BLOCKS))
    header, reader = read_header(path), GGUFReader(path)
    own = {n: f.contents() for n, f in reader.fields.items() if not n.startswith("GGUF.")}
    assert header.fields == own
    assert len(header.tensors) == len(reader.tensors)
    for tensor in reader.tensors:
        entry = header.tensors[tensor.name]
        assert (entry.first, entry.bytes) == (tensor.data_offset, tensor.n_bytes)
        assert entry.shape == tuple(int(n) for n in tensor.shape)[::-1]
        assert entry.format == tensor.tensor_type.name


def test_rope_factors_are_llama_3s_scaling(tmp_path: Path):
    """The same frequencies as config.json's llama3 gives, by the factors that converters write."""
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = random_model("llama", rope_parameters=scaling)
    folder = tmp_path / "folder"
    model.save_pretrained(folder)
    expected = frequencies(load_config(folder))
    plain = 1 / 10000 ** (torch.arange(0, 64, 2) / 64)
    factors = (plain / expected).numpy().astype(np.float32)

    def add(writer: GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", factors)

    path = write_gguf(tmp_path / "m.gguf", model, change=add)
    torch.testing.assert_close(frequencies(load_config(path)), expected, rtol=1e-6, atol=0)
    engine = Engine("custom", small=path, large=folder_with_tokenizer(folder, path), config=CONFIG)
    params = SamplingParams(max_tokens=40)
    texts = [engine.generate(["the 123"], params, p)[0].text for p in ("small", "large")]
    assert texts[0] == texts[1]


def folder_with_tokenizer(folder: Path, path: Path) -> Path:
    engine = Engine("custom", small=path, large=path, config=CONFIG)
    (folder / "tokenizer.json").write_text(engine.tokenizer.to_json())
    return folder


def test_yarn_and_linear_scaling(tmp_path: Path):
    model = random_model("qwen2")

    def yarn(writer: GGUFWriter) -> None:
        writer.add_string("qwen2.rope.scaling.type", "yarn")
        writer.add_float32("qwen2.rope.scaling.factor", 4.0)
        writer.add_uint32("qwen2.rope.scaling.original_context_length", 512)

    rope = load_config(write_gguf(tmp_path / "y.gguf", model, change=yarn))
    assert (rope.rope.kind, rope.rope.factor, rope.max_position) == ("yarn", 4.0, 2048)
    assert rope.rope.attention_factor == pytest.approx(0.1 * np.log(4) + 1)


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        ({"rope.scale_linear": 2.0}, 2.0),
        ({"rope.scaling.factor": 2.0}, 2.0),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}, 2.0),
        ({"rope.scaling.type": "linear", "rope.scale_linear": 2.0}, 2.0),
        ({"rope.scaling.type": "linear"}, None),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 2.0}, None),
        ({"rope.scaling.type": "none", "rope.scale_linear": 2.0}, None),
        ({"rope.scaling.factor": 1.0}, None),
    ],
)
def test_linear_scaling_as_llama_cpp_reads_it(
    keys: dict[str, Any], factor: float | None, tmp_path: Path
):
    """Linear where there is no type; the newer key first."""

    def change(writer: GGUFWriter) -> None:
        for key, value in keys.items():
            _key(f"qwen2.{key}", value)(writer)

    rope = load_config(write_gguf(tmp_path / "m.gguf", random_model("qwen2"), change=change)).rope
    expected = ("default", 1.0) if factor is None else ("linear", factor)
    assert (rope.kind, rope.factor) == expected


def test_recommended_sampling(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def add(writer: GGUFWriter) -> None:
        writer.add_float32("general.sampling.temp", 0.7)
        writer.add_int32("general.sampling.top_k", 20)
        writer.add_int32("general.sampling.mirostat", 2)

    model = random_model("qwen2")
    path = write_gguf(tmp_path / "m.gguf", model, change=add)
    with caplog.at_level("WARNING", "engine.assembly.generation_defaults"):
        found = Engine("custom", small=path, large=path, config=CONFIG).default_params
    assert found == SamplingParams(temperature=0.7, top_k=20)
    assert "ignored: general.sampling.mirostat" in caplog.text
    path = write_gguf(tmp_path / "n.gguf", model)
    found = Engine("custom", small=path, large=path, config=CONFIG).default_params
    assert found == SamplingParams()


def _key(name: str, value: Any) -> Callable[[GGUFWriter], None]:
    return lambda writer: writer.add_key_value(name, value, _kind_of(value))


def _kind_of(value: Any) -> Any:
    from gguf import GGUFValueType

    kinds = {
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.UINT32,
        float: GGUFValueType.FLOAT32,
        str: GGUFValueType.STRING,
    }
    return kinds[type(value)]


def _tensor(name: str, *shape: int) -> Callable[[GGUFWriter], None]:
    return lambda writer: writer.add_tensor(name, np.ones(shape, np.float32))


REFUSED: dict[str, tuple[Callable[[GGUFWriter], None], str]] = {
    "experts": (_key("qwen2.expert_count", 8), r"qwen2\.expert_count 8 is not supported"),
    "an unknown key": (
        _key("qwen2.attention.scale", 0.5),
        r"key .qwen2\.attention\.scale. is not known, and may",
    ),
    "not causal": (_key("qwen2.attention.causal", False), r"attention\.causal False is not"),
    "part of a head": (
        _key("qwen2.rope.dimension_count", 16),
        r"rope\.dimension_count 16 is not supported: a head has 64",
    ),
    "odd rope": (_key("qwen2.rope.scaling.type", "longrope"), "rope type 'longrope' is not"),
    "a wrong type": (_key("qwen2.attention.sliding_window", "wide"), "must be int, got 'wide'"),
    "an extra tensor": (
        _tensor("blk.0.attn_sinks.weight", 4),
        "unexpected tensor .blk.0.attn_sinks.weight",
    ),
    "an extra layer": (_tensor("blk.7.attn_norm.weight", 256), "unexpected tensor model.layers.7"),
    "a folder's name": (_tensor("model.layers.0.input_layernorm.weight", 256), "unexpected tensor"),
    "a scale": (_tensor("blk.0.attn_q.input_scale", 1), "unexpected tensor .blk.0.attn_q.input_"),
    "YaRN's factor without YaRN": (
        _key("qwen2.rope.scaling.attn_factor", 2.0),
        "rope.scaling of type 'linear' with YaRN's factors",
    ),
    "sampling in words": (_key("general.sampling.temp", "hot"), "temp must be int or float, got"),
    "odd factors": (_tensor("rope_freqs.weight", 5), r"shape \(5,\), expected \(32,\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_named(case: str, tmp_path: Path):
    change, message = REFUSED[case]
    path = write_gguf(tmp_path / "m.gguf", random_model("qwen2"), change=change)
    with pytest.raises(SteerError, match=message) as error:
        Engine("custom", small=path, large=path, config=CONFIG)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_other_architectures_are_named(tmp_path: Path):
    writer = GGUFWriter(tmp_path / "m.gguf", "gemma3")
    writer.write_header_to_file(tmp_path / "m.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        SteerError, match=r"architecture .gemma3. is not supported; supported: qwen2"
    ):
        load_config(tmp_path / "m.gguf")


def test_a_pair_that_differs_in_its_words(tmp_path: Path):
    small = write_gguf(tmp_path / "s.gguf", random_model("qwen2"))
    large = write_gguf(
        tmp_path / "l.gguf", random_model("qwen2"), change=lambda w: w.add_add_bos_token(False)
    )
    Engine("custom", small=small, large=large, config=CONFIG)
    data = large.read_bytes().replace(b"<tool>", b"<took>")
    large.write_bytes(data)
    with pytest.raises(SteerError, match=r"s\.gguf and .*l\.gguf differ: token '<tool>'"):
        Engine("custom", small=small, large=large, config=CONFIG)
