"""The contest with other engines: rows, who is left out and why, the file for llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench import peers
from bench.rivals.gguf_file import write_gguf
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
        assert 0 < row["seconds_p20"] <= row["seconds_p50"] <= row["seconds_p80"]
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
        (["--model", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], options, message):
    status, rows = contest(tmp_path, *options)
    assert status == 2 and rows == []
    assert message in capsys.readouterr().err


def test_the_file_for_llama_cpp_holds_the_same_model(tmp_path: Path):
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path)
    vocabulary = {f"t{i}": i for i in range(18)}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": vocabulary, "merges": ["t 1"]}})
    )
    write_gguf(tmp_path, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert len(found) == 3 + 2 * 9
    weights = model.state_dict()

    def stored(name: str) -> torch.Tensor:
        return torch.from_numpy(found[name].data.copy()).view(torch.bfloat16)

    up = weights["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(stored("blk.1.ffn_up.weight"), up)
    key = weights["model.layers.0.self_attn.k_proj.weight"].view(2, 2, 4, 32)
    pairs = stored("blk.0.attn_k.weight").view(2, 4, 2, 32)
    assert torch.equal(pairs.transpose(1, 2), key)
    norm = torch.from_numpy(found["output_norm.weight"].data.copy())
    assert torch.equal(norm, weights["model.norm.weight"].float())
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == 20


def test_other_families_are_refused_for_llama_cpp(tmp_path: Path):
    with pytest.raises(ValueError, match="only plain Llama checkpoints"):
        write_gguf(TINY / "small", tmp_path / "model.gguf")
