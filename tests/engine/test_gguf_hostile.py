"""GGUF files that are damaged or made to do harm: refused in one line, at no cost."""

from __future__ import annotations

import resource
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Engine, EngineConfig, SteerError
from engine.models.checkpoint import load_config

from .gguf_files import random_model, write_gguf

CONFIG = EngineConfig(arena_tokens=2048)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "m.gguf"
    return write_gguf(path, random_model("qwen2")).read_bytes()


def _at(data: bytes, place: int, code: str, value: int) -> bytes:
    size = struct.calcsize(code)
    return data[:place] + struct.pack(f"<{code}", value) + data[place + size :]


def _tensor_info(data: bytes, name: bytes) -> int:
    """Where a tensor's number of dimensions stands."""
    return data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name)


NAME = b"blk.0.attn_norm.weight"


HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda d: b"", "not a readable GGUF file"),
    "another file": (lambda d: b"PK\3\4" + d[4:], "does not begin with GGUF"),
    "a pickle": (lambda d: b"\x80\x04" + d[2:], "does not begin with GGUF"),
    "version 1": (lambda d: _at(d, 4, "I", 1), "version 1 is not supported"),
    "big-endian": (lambda d: _at(d, 4, "I", 3 << 24), "not supported: 2 and 3 .little-endian"),
    "many tensors": (lambda d: _at(d, 8, "Q", 2**60), "cut off|dimensions|name of|twice"),
    "many keys": (lambda d: _at(d, 16, "Q", 2**60), "unknown|cut off|name of|not a readable"),
    "a long name": (lambda d: _at(d, 24, "Q", 2**63), "a name of 9223372036854775808 bytes"),
    "cut in the header": (lambda d: d[:3000], "cut off at byte 3000, within its header"),
    "cut in the data": (lambda d: d[:-64], "the file is cut off"),
    "no dimensions": (lambda d: _at(d, _tensor_info(d, NAME), "I", 0), "has 0 dimensions"),
    "a huge tensor": (
        lambda d: _at(d, _tensor_info(d, NAME) + 4, "Q", 2**62),
        f"tensor {NAME.decode()} ends at byte|tensor .* begins",
    ),
    "an empty tensor": (lambda d: _at(d, _tensor_info(d, NAME) + 4, "Q", 0), r"has shape \(0,\)"),
    "an odd format": (
        lambda d: _at(d, _tensor_info(d, NAME) + 12, "I", 77),
        "format 77 is unknown",
    ),
    "inside another": (lambda d: _at(d, _tensor_info(d, NAME) + 16, "Q", 32), "inside another"),
    "askew": (
        lambda d: _at(d, _tensor_info(d, NAME) + 16, "Q", 33),
        "inside another, or not at a multiple of 32",
    ),
    "twice": (
        lambda d: d.replace(b"blk.0.attn_norm.weight", b"blk.1.attn_norm.weight"),
        r"tensor blk\.1\.attn_norm\.weight appears twice",
    ),
    "not UTF-8": (lambda d: d.replace(b"<tool>", b"<\xff\xfe\xfd>"), "not a readable GGUF file"),
    "another shape": (
        lambda d: _at(d, _tensor_info(d, NAME) + 4, "Q", 255),
        r"input_layernorm.weight has shape \(255,\), its metadata asks for \(256,\)",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case: str, sound: bytes, tmp_path: Path):
    """Each in one line that names the file, at once, whatever sizes it claims."""
    change, message = HOSTILE[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(change(sound))
    with pytest.raises(SteerError, match=message) as error:
        Engine("custom", small=path, large=path, config=CONFIG)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_claims_cost_nothing(tmp_path: Path):
    """Headers of many gigabytes, in a file that has them (as a hole): refused within a second."""
    path = tmp_path / "m.gguf"
    begin = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a"
    for kind, count in ((8, 2**23), (0, 2**40), (0, 2**24), (8, 2**62)):
        path.write_bytes(begin + struct.pack("<IIQ", 9, kind, count))
        with path.open("r+b") as file:
            file.truncate(2**36)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(SteerError, match=r"an array of|longer than|not known|is missing|None"):
            load_config(path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_more_layers_than_tensors(sound: bytes, tmp_path: Path):
    key = b"qwen2.block_count"
    path = tmp_path / "m.gguf"
    path.write_bytes(_at(sound, sound.index(key) + len(key) + 4, "I", 2**31 - 1))
    with pytest.raises(SteerError, match="2147483647 layers, but 27 tensors"):
        load_config(path)


def test_without_the_package(sound: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "m.gguf").write_bytes(sound)
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    with pytest.raises(
        SteerError, match=r"^reading GGUF files needs the gguf package: pip install"
    ):
        load_config(tmp_path / "m.gguf")


def test_every_cut_is_refused(sound: bytes, tmp_path: Path):
    """Wherever a download stopped."""
    path = tmp_path / "m.gguf"
    for size in {*range(1, 400, 7), *range(400, len(sound), len(sound) // 50)}:
        path.write_bytes(sound[:size])
        with pytest.raises(SteerError, match="cut off"):
            load_config(path)


def test_missing_files(tmp_path: Path):
    for path, message in (
        (tmp_path / "no.gguf", r"no\.gguf: no such GGUF file"),
        (
            tmp_path / "no",
            r"no: no such folder; expected a Hugging Face checkpoint folder or a \.g",
        ),
    ):
        with pytest.raises(SteerError, match=message):
            Engine("custom", small=path, large=path)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.gguf").write_bytes(b"")
    with pytest.raises(
        SteerError, match=r"files: a folder of GGUF files; pass one of them, as .*a\.g"
    ):
        load_config(tmp_path / "files")
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(SteerError, match="is a folder, expected a GGUF file"):
        load_config(tmp_path / "folder.gguf")
    (tmp_path / "model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(SteerError, match=r"model\.bin: a file; expected"):
        load_config(tmp_path / "model.bin")
