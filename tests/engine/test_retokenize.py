"""Pairs whose tokenizers differ: text crosses at step boundaries, exactly, and is counted."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import Engine, EngineConfig, SamplingParams, SteerError, Usage
from engine.cli import main
from engine.config import TINY
from engine.replay.trace import Trace

from .other_pieces import POLICIES

PROMPTS = ["47+36*37-15?\n\n", "82*71+24*7?\n\n", "11+22-33?\n\n", "5*6*7?\n\n", "13*17*19*23?\n\n"]


def permuted(folder: Path, output: Path) -> Path:
    """The same checkpoint under other ids: its tokenizer, and the rows of embedding and head."""
    shutil.copytree(folder, output)
    path = output / "tokenizer.json"
    raw = json.loads(path.read_text())
    vocabulary = raw["model"]["vocab"]
    ids = sorted({*vocabulary.values(), *(t["id"] for t in raw["added_tokens"])})
    assert ids == list(range(len(ids)))
    new = list(ids)
    random.Random(5).shuffle(new)
    raw["model"]["vocab"] = {token: new[i] for token, i in vocabulary.items()}
    raw["added_tokens"] = sorted(
        ({**t, "id": new[t["id"]]} for t in raw["added_tokens"]), key=lambda t: t["id"]
    )
    path.write_text(json.dumps(raw))
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((output / name).read_text())
        for key in ("eos_token_id", "pad_token_id", "bos_token_id"):
            if settings.get(key) is not None:
                settings[key] = new[settings[key]]
        (output / name).write_text(json.dumps(settings))
    weights = load_file(output / "model.safetensors")
    rows = json.loads((output / "config.json").read_text())["vocab_size"]
    order = torch.arange(rows)
    order[torch.tensor(new)] = torch.tensor(ids)
    for name, tensor in weights.items():
        if tensor.shape[0] == rows and ("embed" in name or "head" in name):
            weights[name] = tensor[order].contiguous()
    save_file(weights, output / "model.safetensors", {"format": "pt"})
    return output


@pytest.fixture(scope="module")
def other_ids(tmp_path_factory) -> Path:
    """The embedded large model under other ids."""
    return permuted(TINY / "large", tmp_path_factory.mktemp("permuted") / "large")


def both(other_ids: Path, **settings) -> tuple[Engine, Engine]:
    """The embedded pair, and the same with other ids for the large model."""
    shared = Engine("tiny", config=EngineConfig(**settings), dtype="float32", device="cpu")
    apart = Engine(
        "custom",
        small=TINY / "small",
        large=other_ids,
        dtype="float32",
        device="cpu",
        config=EngineConfig(**settings, retokenize=True),
    )
    return shared, apart


def test_without_the_flag_the_first_difference_is_named(other_ids: Path):
    with pytest.raises(SteerError, match=r"differ: token .* is id \d+ in the small .*retokenize"):
        Engine("custom", small=TINY / "small", large=other_ids)


def test_where_the_tokens_agree_the_flag_changes_nothing():
    plain, flagged = Engine("tiny"), Engine("tiny", config=EngineConfig(retokenize=True))
    assert plain.fingerprint == flagged.fingerprint
    found = [
        e.generate(PROMPTS, SamplingParams(max_tokens=48), "random:0.5") for e in (plain, flagged)
    ]
    assert [c.token_ids for c in found[0]] == [c.token_ids for c in found[1]]
    assert all(c.usage.crossings == 0 for c in found[1])
    assert flagged.generate([flagged.tokenizer.encode(PROMPTS[0])])


SETTINGS = {
    "plain": {},
    "stop": {"stop": ("5", "\n\n7")},
    "step": {"max_step_tokens": 2},
    "thinking": {"think_end": "?", "max_think_tokens": 9},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.3},
    "share": {"max_large_share": 0.3},
    "flops": {"max_flops": 3e7},
}


def same(shared: Engine, apart: Engine, params: SamplingParams, policy, prompts=PROMPTS):
    """The text, the steps and the books of both are equal; returns those of the second."""
    expected, found = (e.generate(prompts, params, policy) for e in (shared, apart))
    for one, other in zip(expected, found, strict=True):
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        assert one.token_ids == other.token_ids
        steps = [[(s.position, s.model, s.text) for s in c.steps] for c in (one, other)]
        assert steps[0] == steps[1]
        assert [s.reason for s in one.steps] == [s.reason for s in other.steps]
        if shared.config.speculate:  # their guesses come from elsewhere
            continue
        a, b = one.usage, other.usage
        assert np.array_equal(a.rows, b.rows), (a.rows.tolist(), b.rows.tolist())
        assert np.array_equal(a.entries, b.entries)
        assert a.decision_wait == b.decision_wait and b.crossings >= (other.large_step_share > 0)
    return found


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("policy", POLICIES)
def test_other_ids_change_nothing(other_ids: Path, policy: str, settings: str):
    if policy == "after" and settings != "thinking":
        pytest.skip("it needs the text that ends thinking")
    if policy == "answer" and settings == "thinking":
        pytest.skip("a whole answer on trial does not end with thinking")
    shared, apart = both(other_ids, prefix_cache=False, check_every=1)
    params = SamplingParams(max_tokens=40, **SETTINGS[settings])
    found = same(shared, apart, params, POLICIES[policy])
    if policy in ("large", "random") and settings == "plain":
        assert sum(c.usage.crossings for c in found) > len(PROMPTS)


def test_other_ids_change_nothing_for_steer(other_ids: Path, tmp_path: Path):
    shared, apart = both(other_ids, prefix_cache=False, check_every=1)
    assert shared.fingerprint.partition("-")[2] != apart.fingerprint.partition("-")[2]
    policy = shared.policy("steer")
    trace = tmp_path / "trace.jsonl"
    found = same(shared, apart, SamplingParams(max_tokens=64), policy)
    assert any(s.model == "large" for c in found for s in c.steps)
    again = apart.generate(PROMPTS, SamplingParams(max_tokens=64), policy, trace=trace)
    read = Trace.read(trace)
    total = sum((c.usage for c in again), Usage())
    assert sum((r.usage for r in read.requests), Usage()).to_json() == total.to_json()
    assert total.crossings > 0 and total.retokenised.min() > 0


@pytest.mark.parametrize("policy", ["small", "large", "random", "threshold", "probe"])
def test_a_loop_ends_where_it_does_with_shared_tokens(ring, tmp_path: Path, policy: str):
    small, large = ring.folders
    other = permuted(large, tmp_path / "large")
    engines = [
        Engine(
            "custom",
            small=small,
            large=folder,
            device="cpu",
            config=EngineConfig(prefix_cache=False, check_every=1, retokenize=folder == other),
        )
        for folder in (large, other)
    ]
    params = SamplingParams(max_tokens=100, max_repeats=9)
    found = same(*engines, params, POLICIES[policy], ["a", "b", "ca"])
    assert all(c.finish_reason == "repetition" for c in found)
    found = same(*engines, replace(params, max_repeats=0), POLICIES[policy], ["a", "b", "ca"])
    assert all(c.finish_reason == "length" for c in found)


@pytest.mark.parametrize("ahead", ["off", "both"])
def test_with_a_prefix_cache_and_planned_ahead(other_ids: Path, ahead: str):
    shared, apart = both(other_ids, block_tokens=4, plan_ahead=ahead, check_every=1, graphs="on")
    params = SamplingParams(max_tokens=40)
    for policy in (POLICIES["random"], POLICIES["threshold"], POLICIES["large"]):
        expected, found = (e.generate(PROMPTS, params, policy) for e in (shared, apart))
        assert [c.text for c in found] == [c.text for c in expected]


def test_a_stream_joins_to_the_text(other_ids: Path):
    _, apart = both(other_ids)
    params = SamplingParams(max_tokens=40)
    events = list(apart.stream(PROMPTS[0], params, POLICIES["random"]))
    done = events[-1].completion
    assert done is not None and "".join(e.text for e in events) == done.text
    assert [e.model for e in events if e.kind == "step"] == [s.model for s in done.steps]


def test_log_probabilities_are_those_of_tokens_that_a_model_drew_here(other_ids: Path):
    shared, apart = both(other_ids)
    params = SamplingParams(max_tokens=40, logprobs=2)
    expected, found = (e.generate(PROMPTS, params, POLICIES["random"]) for e in (shared, apart))
    for one, other in zip(expected, found, strict=True):
        place = 0
        for step in other.steps:
            span = slice(place, place := place + len(step.token_ids))
            mine = [t.logprob for t in other.logprobs[span]]
            if step.model == "large":
                assert mine == [None] * len(mine)
            else:
                assert mine == pytest.approx([t.logprob for t in one.logprobs[span]], abs=1e-4)


def test_the_command_takes_the_flag(other_ids: Path, capsys):
    command = [
        "generate",
        PROMPTS[0],
        "--pair",
        "custom",
        "--small",
        str(TINY / "small"),
        "--large",
        str(other_ids),
        "--policy",
        "random:0.5",
    ]
    assert main(command) == 2
    assert "retokenize" in capsys.readouterr().err
    assert main([*command, "--retokenize"]) == 0
    assert "large" in capsys.readouterr().out


def test_the_small_model_guesses_none_of_the_others_tokens(other_ids: Path):
    """The reason is given; what stands in the large model's own text can be guessed."""
    shared, apart = both(other_ids, check_every=1)
    with pytest.raises(
        SteerError, match=r"different tokens; use the source .lookup. .speculate:4:l"
    ):
        apart.generate(PROMPTS, SamplingParams(), "random:0.5+speculate")
    with pytest.raises(SteerError, match="cannot guess the large one's tokens"):
        both(other_ids, speculate=3, draft_source="small")
    params = SamplingParams(max_tokens=60)
    guessed = same(shared, apart, params, "large+speculate:0")
    looked = apart.generate(PROMPTS, params, "speculate:5:lookup")
    assert [c.token_ids for c in looked] == [c.token_ids for c in guessed]
    counts = sum((c.usage for c in looked), Usage()).speculated
    assert counts.looked_up > 0 and counts.passes > 0 and counts.drafted == 0


@pytest.mark.costs
def test_a_calibration_is_that_of_the_shared_pair(other_ids: Path, tmp_path: Path, capsys):
    """tau for an accuracy, both models at work; agreement asks for what cannot cross."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": p}) for p in PROMPTS * 8))
    apart = ["--pair=custom", f"--small={TINY / 'small'}", f"--large={other_ids}", "--retokenize"]
    found = []
    for name, pair in (("shared", []), ("apart", apart)):
        output = tmp_path / f"{name}.json"
        flags = ["--max-tokens=80", "--target=share:0.25", "--no-plots", f"--output={output}"]
        assert main(["calibrate", str(path), *pair, *flags]) == 0
        found.append(json.loads(output.read_text()))
    assert found[0].pop("pair") != found[1].pop("pair")
    for raw in found:
        del raw["provenance"]["pair"], raw["provenance"]["date"]
    assert found[0] == found[1] and found[0]["provenance"]["aim_reached"]
    assert main(["generate", PROMPTS[0], *apart, f"--calibration={output}"]) == 0
    capsys.readouterr()
    agreement = ["--target=agreement:0.9", f"--output={tmp_path / 'never.json'}"]
    assert main(["calibrate", str(path), *apart, *agreement]) == 2
    assert "cannot go with --retokenize" in capsys.readouterr().err
    assert not (tmp_path / "never.json").exists()
