"""Added tokens that a model has no rows for: never written, and refused in prompts."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from engine import Engine, EngineConfig, Prompt, SamplingParams, SteerError
from engine.text.tokenizer import Tokenizer

from .scripted import scripted_checkpoint

PIECES = [*"?abcd", "\n\n"]
SCRIPT = [*"abcd", "<eos>"]
EOS = len(PIECES)
PAD = EOS + 1  # rows of the head are 0..EOS


def checkpoint(folder: Path, rows: int = PAD, pad: bool = True) -> Path:
    files = {"added_tokens": {"[PAD]": PAD}} if pad else {}
    config = {"eos_token_id": [EOS, PAD]}
    return scripted_checkpoint(folder, PIECES, SCRIPT, ["<eos>"], config, **files)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    folder = checkpoint(tmp_path)
    return Engine("custom", small=folder, large=folder)


@pytest.mark.parametrize("policy", ["small", "large"])
def test_a_folder_with_a_token_beyond_the_head_runs(engine: Engine, policy: str):
    params = SamplingParams(max_tokens=20, logprobs=PAD, min_tokens=2)
    (done,) = engine.generate(["a"], params, policy)
    assert (done.text, done.finish_reason) == ("bcd", "stop")
    assert done.logprobs is not None
    assert {index for each in done.logprobs for index, _ in each.top} == set(range(PAD))
    flat = SamplingParams(max_tokens=60, temperature=1e9, ignore_eos=True, seed=3)
    (drawn,) = engine.generate(["a"], flat, policy)
    assert set(drawn.token_ids) == set(range(PAD))


def test_what_uses_the_token_is_refused(engine: Engine):
    text = rf"the text holds '\[PAD\]' \(id {PAD}\), which the model has no row for"
    for prompt in ("a[PAD]b", "[PAD]"):
        with pytest.raises(SteerError, match=text):
            engine.generate([prompt], policy="small")
    with pytest.raises(SteerError, match=text):
        engine.generate(["a"], SamplingParams(think_end="[PAD]", max_think_tokens=4), "small")
    ids = rf"token id {PAD} is not in 0\.\.{EOS}"
    for params in (SamplingParams(stop_token_ids=(PAD,)), SamplingParams(logit_bias={PAD: 1.0})):
        with pytest.raises(SteerError, match=ids):
            engine.generate(["a"], params, "small")
    with pytest.raises(SteerError, match=ids):
        engine.generate([[1, PAD]], policy="small")
    assert engine.generate(["ab"], SamplingParams(max_tokens=20), "small")[0].text == "cd"
    assert engine.tokenizer.id_of("[PAD]") is None


def test_the_log_names_the_tokens(tmp_path: Path, caplog):
    folder = checkpoint(tmp_path)
    with caplog.at_level(logging.WARNING, logger="engine.assembly.loading"):
        Engine("custom", small=folder, large=folder)
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: the model has {PAD} rows, so '[PAD]' (id {PAD}) is never written, and prompts "
        "that hold it are refused"
    ]


def test_a_head_of_either_model_counts(tmp_path: Path):
    """The large model's head is padded and has a row for the token, the small one's has none."""
    small = checkpoint(tmp_path / "small")
    large = scripted_checkpoint(
        tmp_path / "large", PIECES, SCRIPT, ["<eos>", "[PAD]"], {"eos_token_id": EOS}
    )
    for folder, flag in ((small, True), (large, True)):
        path = folder / "added_tokens.json"
        path.unlink(missing_ok=True)
        tokens = {str(PAD): {"content": "[PAD]", "special": flag, "normalized": False}}
        (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": tokens}))
    # The word tokenizer of the large folder lists all words in its vocabulary.
    (large / "tokenizer.json").write_text((small / "tokenizer.json").read_text())
    for pair in ((small, large), (large, small)):
        engine = Engine("custom", small=pair[0], large=pair[1])
        assert engine.tokenizer.size == PAD
        for policy in ("small", "large"):
            assert engine.generate(["a"], SamplingParams(max_tokens=20), policy)[0].text == "bcd"


def test_models_with_tokens_of_their_own(tmp_path: Path):
    """Each tokenizer of a pair that differs is limited by its own model."""
    small = checkpoint(tmp_path / "small")
    large = checkpoint(tmp_path / "large", pad=False)
    config = EngineConfig(retokenize=True)
    engine = Engine("custom", small=small, large=large, config=config)
    for policy in ("small", "large"):
        assert engine.generate(["a"], SamplingParams(max_tokens=20), policy)[0].text == "bcd"
    with pytest.raises(SteerError, match=r"the text holds '\[PAD\]'"):
        engine.generate(["a[PAD]"], policy="small")
    with pytest.raises(SteerError, match=rf"token id {PAD} is not in 0\.\.{EOS}"):
        engine.generate([Prompt((PAD,), (1,))], policy="small")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path):
    """Words of its vocabulary, not only added tokens, have no rows."""
    folder = checkpoint(tmp_path / "one", pad=False)
    other = scripted_checkpoint(tmp_path / "other", [*PIECES, *"xyz"], SCRIPT, ["<eos>"])
    (folder / "tokenizer.json").write_text((other / "tokenizer.json").read_text())
    size = Tokenizer(other).size
    with pytest.raises(SteerError, match=f"the tokenizer has {size} ids, the model {PAD}"):
        Engine("custom", small=folder, large=folder)
