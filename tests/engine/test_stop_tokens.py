"""Stop strings that are special tokens: they have no text, and end an answer all the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine import Engine, EngineConfig, SamplingParams, SteerError

from .scripted import scripted_checkpoint

LETTERS = [*"?abcdefghij"]
SPECIAL = ["<eos>", "<|eot|>"]
EOS, TURN = len(LETTERS), len(LETTERS) + 1
SCRIPT = [*"abc", "<|eot|>", *"defg", "<eos>"]
STOP = SamplingParams(20, stop=("<|eot|>",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("turns")
    return scripted_checkpoint(folder, LETTERS, SCRIPT, SPECIAL, {"eos_token_id": EOS})


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine("custom", small=folder, large=folder, config=EngineConfig(check_every=1))


@pytest.mark.parametrize("role", ["small", "large"])
def test_a_special_token_stops_by_its_spelling(engine: Engine, role: str):
    """As its id does: the same ids, text without it, and the reason."""
    (by_text,) = engine.generate(["a"], STOP, role)
    (by_id,) = engine.generate(["a"], SamplingParams(20, stop_token_ids=(TURN,)), role)
    assert by_text.text == "bc" and by_text.finish_reason == "stop"
    assert by_text.token_ids == by_id.token_ids == (2, 3, TURN)


def test_beside_other_stop_strings_the_first_counts(engine: Engine):
    (done,) = engine.generate(["a"], replace(STOP, stop=("fg", "<|eot|>")), "small")
    assert done.text == "bc"
    (done,) = engine.generate(["d"], replace(STOP, stop=("fg", "<|eot|>")), "small")
    assert done.text == "e"


def test_it_obeys_min_tokens(engine: Engine):
    """Until then it is not sampled: here the greedy choice after it is the first of equal ones."""
    (done,) = engine.generate(["a"], replace(STOP, min_tokens=5), "small")
    assert TURN not in done.token_ids[:5] and len(done.token_ids) >= 5


def test_it_stops_without_the_models_own_ends(engine: Engine):
    (done,) = engine.generate(["a"], replace(STOP, ignore_eos=True), "small")
    assert done.token_ids == (2, 3, TURN)


def test_within_other_text_it_is_refused(engine: Engine):
    with pytest.raises(
        SteerError, match=r"stop string 'c<\|eot\|>' contains '<\|eot\|>', a special token"
    ):
        engine.generate(["a"], replace(STOP, stop=("c<|eot|>",)), "small")
    assert engine.generate(["a"], STOP, "small")[0].text == "bc"


@pytest.mark.parametrize("delimiter", ["<|eot|>", "\n<|eot|>"])
def test_delimiters_with_special_tokens_are_refused(folder: Path, delimiter: str):
    with pytest.raises(SteerError, match=r"delimiter .*<\|eot\|>.* a special token"):
        config = EngineConfig(delimiters=("\n\n", delimiter))
        Engine("custom", small=folder, large=folder, config=config)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same script in other ids, with a special token that the small model lacks."""
    folder = tmp_path_factory.mktemp("other")
    letters, special = ["?", *reversed(LETTERS[1:])], ["<|end|>", *reversed(SPECIAL)]
    script = [*"abc", "<|eot|>", *"de", "<|end|>", "f"]
    config = {"eos_token_id": len(letters) + special.index("<eos>")}
    return scripted_checkpoint(folder, letters, script, special, config)


@pytest.fixture(scope="module")
def bridged(folder: Path, other: Path) -> Engine:
    config = EngineConfig(retokenize=True, check_every=1)
    return Engine("custom", small=folder, large=other, config=config)


@pytest.mark.parametrize("role", ["small", "large"])
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_it_stops_where_text_crosses(bridged: Engine, role: str, ignore_eos: bool):
    """Each model by its own id; the answer has the small model's."""
    (done,) = bridged.generate(["a"], replace(STOP, ignore_eos=ignore_eos), role)
    assert (done.text, done.finish_reason) == ("bc", "stop")
    assert done.token_ids == (2, 3, TURN)


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_special_token_of_the_large_model_only(bridged: Engine, ignore_eos: bool):
    """It ends the text too, and leaves no token of the small model."""
    params = SamplingParams(20, stop="<|end|>", ignore_eos=ignore_eos)
    (done,) = bridged.generate(["d"], params, "large")
    assert (done.text, done.finish_reason, done.token_ids) == ("e", "stop", (5,))


def test_special_tokens_of_either_model_are_refused_within_text(
    bridged: Engine, folder: Path, other: Path
):
    with pytest.raises(SteerError, match=r"contains '<\|end\|>', a special token"):
        bridged.generate(["a"], SamplingParams(9, stop="b<|end|>"), "small")
    with pytest.raises(SteerError, match=r"delimiter '<\|end\|>' is a special token"):
        config = EngineConfig(retokenize=True, delimiters=("<|end|>",))
        Engine("custom", small=folder, large=other, config=config)
