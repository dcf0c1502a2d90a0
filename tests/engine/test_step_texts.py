"""Steps that end within a character: their texts still join to the text of the answer."""

from __future__ import annotations

import json

import pytest

from engine import Engine, SamplingParams
from engine.text.tokenizer import Tokenizer

from .scripted import scripted_checkpoint

# Each letter is a byte as byte-level tokenizers write it: "€" is three tokens, a broken "é" is one.
EURO, BROKEN = "âĤ¬", "Ã"
SCRIPT = ["a", *EURO, "b", BROKEN, "c", "<eos>"]
TEXT = "€b\ufffdc"


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    pieces = ["?", *"abc", *EURO, BROKEN]
    folder = scripted_checkpoint(
        tmp_path_factory.mktemp("bytes"), pieces, SCRIPT, ["<eos>"], {"eos_token_id": len(pieces)}
    )
    path = folder / "tokenizer.json"
    decoder = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder": decoder}))
    return Engine("custom", small=folder, large=folder)


@pytest.mark.parametrize("policy", ["small", "large", "random:0.5"])
@pytest.mark.parametrize(
    ("limits", "texts"),
    [
        ({"max_step_tokens": 1}, ["", "", "€", "b", "", "\ufffdc", ""]),
        ({"max_step_tokens": 2}, ["", "€b", "\ufffdc", ""]),
        ({"max_step_tokens": 3}, ["€", "b\ufffdc", ""]),
        ({"max_step_tokens": 1, "max_tokens": 2}, ["", "\ufffd"]),
        ({"max_step_tokens": 1, "stop": ("b",)}, ["", "", "€", "b"]),
        ({"max_tokens": 5}, ["€b\ufffd"]),
    ],
)
def test_texts_of_steps_join(engine: Engine, limits, texts, policy):
    params = SamplingParams(**{"max_tokens": 20, "seed": 1} | limits)
    (done,) = engine.generate(["a"], params, policy)
    read = [step.text for step in done.steps]
    assert read == texts
    stop = "b" if "stop" in limits else ""
    assert "".join(read) == done.text + stop
    events = list(engine.stream("a", params, policy))
    assert "".join(event.text for event in events) == done.text
    streamed: list[str] = []
    for event in events:
        if event.kind == "step":
            streamed.append("")
        elif event.kind == "text":
            streamed[-1] += event.text
    assert streamed == [*read[:-1], read[-1].removesuffix(stop)]


def test_pieces_join_wherever_they_are_cut(engine: Engine):
    tokenizer: Tokenizer = engine.tokenizer
    ids = [tokenizer.id_of(token) for token in SCRIPT]
    for first in range(len(ids) + 1):
        for second in range(first, len(ids) + 1):
            pieces = [ids[:first], ids[first:second], ids[second:]]
            assert "".join(tokenizer.texts_of(pieces)) == tokenizer.text_of(ids) == f"a{TEXT}"
