"""Devices, dtypes and memory: what is chosen, what is left for the arena, and what is refused."""

from __future__ import annotations

import pytest
import torch

from engine import Engine, EngineConfig, SteerError
from engine.cli import main
from engine.device.devices import choose_devices, choose_dtype
from engine.device.memory_budget import CardMemory, arena_slabs
from tests.engine.ways import GPU

GIB = 2**30


@pytest.mark.parametrize(
    ("free", "asked", "slabs"), [(80, 0, 44), (80, 10, 10), (80, 44, 44), (40, 0, 4), (70, 0, 34)]
)
def test_the_arena_takes_what_is_left(free, asked, slabs):
    """Of 80 GiB a quarter stays free, 16 GiB are needed beside the arena."""
    card = CardMemory("a card", 80 * GIB, free * GIB, 0.75)
    needed = {"weights": 14 * GIB, "workspaces": 2 * GIB}
    assert arena_slabs(card, needed, GIB, 256, asked) == slabs


@pytest.mark.parametrize(
    ("free", "asked", "says"),
    [
        (
            39,
            0,
            r"20.00 GiB are needed \(14.00 GiB for weights \+ 2.00 GiB for workspaces \+ 4.00 "
            r"GiB for an arena of 1024 tokens\), 19.00 of 39.00 GiB free may be used "
            r"\(memory_fraction 0.75\): free the card, take a smaller pair or dtype",
        ),
        (80, 61, "77.00 GiB are needed .*arena of 15616 tokens.*: arena_tokens=11264 would fit"),
        (12, 0, "0.00 of 12.00 GiB free may be used"),
    ],
)
def test_what_does_not_fit(free, asked, says):
    card = CardMemory("a card", 80 * GIB, free * GIB, 0.75)
    needed = {"weights": 14 * GIB, "workspaces": 2 * GIB}
    with pytest.raises(SteerError, match=f"a card: .*{says}"):
        arena_slabs(card, needed, GIB, 256, asked)


@pytest.mark.skipif(GPU, reason="asks for a GPU where there is none")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_no_gpu(name):
    with pytest.raises(SteerError, match=f"device {name}: PyTorch sees no NVIDIA GPU here"):
        Engine("tiny", device=name)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("gpu",), "unknown device 'gpu'; known: auto, cpu, cuda, cuda:N"),
        (("cuda:x",), "unknown device 'cuda:x'"),
        (("auto", ("cpu",)), "devices must name one for each of the two models"),
        (("auto", "cpu"), "devices must name one for each of the two models"),
        (("cuda:7",), "device cuda:7: there are 2 GPUs, numbered from 0"),
        (("auto", ("cpu", "cuda:1")), "devices must be of one kind, got cpu and cuda:1"),
    ],
)
def test_bad_devices(arguments, says, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(SteerError, match=says):
        choose_devices(*arguments)


def test_the_command_takes_a_device_for_each_model(capsys):
    said = []
    for flag in ("--device=cpu", "--devices=cpu, cpu"):
        assert main(["generate", "47+36*7-15?", flag, "--max-tokens=6", "--seed=1"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "rows:" in said[0]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--devices=cpu"], "devices must name one for each of the two models, got ['cpu']"),
        (["--devices=cpu,tpu"], "unknown device 'tpu'; known: auto, cpu, cuda, cuda:N"),
        (["--devices=cpu,cpu", "--device=cpu"], "leave --device out"),
    ],
)
def test_bad_devices_of_the_command(flags, says, capsys):
    assert main(["generate", "4+3?", *flags]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and says in told.err and told.err.count("\n") == 1


def test_dtypes_of_cards(monkeypatch):
    """What a card lacks is refused by name, and not chosen."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "an old card")
    card, host = torch.device("cuda", 0), torch.device("cpu")
    assert choose_dtype("auto", (host, host)) == torch.float32
    for capability, chosen in (((9, 0), torch.bfloat16), ((7, 5), torch.float32)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert choose_dtype("auto", (card, card)) == chosen
    with pytest.raises(SteerError, match=r"cuda:0 \(an old card\) has no bfloat16; take float32"):
        choose_dtype("bfloat16", (card, card))
    with pytest.raises(SteerError, match="unknown dtype 'half'"):
        choose_dtype("half", (card, card))


@pytest.mark.parametrize(
    ("field", "value"), [("graphs", "yes"), ("memory_fraction", 0), ("memory_fraction", 1.5)]
)
def test_bad_settings(field, value):
    with pytest.raises(SteerError, match=field):
        EngineConfig(**{field: value})
