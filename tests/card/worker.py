"""Enters the simulated card for the life of a process, with faults that a test asks for."""

from __future__ import annotations

import json
import os
import subprocess
import time
from importlib import import_module
from typing import Any

import torch

from bench.gpu_quick.parts import MODULES
from tests.card.backends import CardBackend, references
from tests.card.simulated import simulated_card
from tests.interpreter import patch_once


def enter() -> None:
    """From here on PyTorch sees a GPU."""
    torch.set_num_threads(1)
    patch_once()
    for each in (simulated_card(), references()):
        each.__enter__()
        _KEPT.append(each)
    faults = json.loads(os.environ.get("STEER_CARD_FAULTS", "{}"))
    if "spoil" in faults:
        _spoil(faults["spoil"])
    for kind, fault in (("fail", _fail), ("hang", _hang)):
        if kind in faults:
            module = import_module(f"bench.gpu_quick.parts.{MODULES[faults[kind]]}")
            module.run = fault


_KEPT: list[Any] = []  # a context that is collected is left


def _spoil(name: str) -> None:
    """An op whose first result is a little off."""
    right = getattr(CardBackend, name)

    def wrong(self: CardBackend, *args: Any, **kwargs: Any) -> Any:
        return right(self, *args, **kwargs).mul(1.25)

    setattr(CardBackend, name, wrong)


def _row(scene: Any) -> None:
    with scene.writer() as writer:
        writer.write({"bench": "fault"})


def _fail(scene: Any) -> None:
    _row(scene)
    raise RuntimeError("CUDA error: an illegal memory access, simulated")


def _hang(scene: Any) -> None:
    _row(scene)
    subprocess.Popen(["sleep", json.loads(os.environ["STEER_CARD_FAULTS"])["sleep"]])
    time.sleep(999)
