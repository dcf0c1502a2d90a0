"""Tensor files as they should not be: an error that names file and tensor, and nothing executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine import SteerError
from engine.config import TINY
from engine.models.checkpoint import expected_shapes, load_config, load_weights

NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"
WHOLE = load_file(TINY / "small" / "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "small"
    shutil.copytree(TINY / "small", copy)
    return copy


def load(folder: Path):
    return load_weights(folder, load_config(folder), torch.float32)


def take_apart(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_together(path: Path, header: dict, body: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def edit(entry: dict, **changes: object) -> None:
    entry.update(changes)


def shift(entry: dict, count: int) -> None:
    entry["data_offsets"] = [offset + count for offset in entry["data_offsets"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: edit(e, shape=[-48]), "has a negative size"),
        (lambda e: edit(e, shape=[2**62, 2**62]), "takes .* bytes by its shape"),
        (lambda e: edit(e, shape=[49]), "takes 98 bytes by its shape"),
        (lambda e: edit(e, shape="48"), "has no shape of whole numbers"),
        (lambda e: edit(e, shape=[48.5]), "has no shape of whole numbers"),
        (lambda e: edit(e, dtype="F99"), "has an unknown dtype: F99"),
        (lambda e: shift(e, -2), "begins at byte .*, inside the tensor that ends at"),
        (lambda e: shift(e, 2), "begins at byte .*, behind a hole that starts at"),
        (lambda e: edit(e, data_offsets=[5]), "has no pair of offsets"),
    ],
)
def test_a_wrong_entry_is_named(folder: Path, change, message: str):
    path = folder / "model.safetensors"
    header, body = take_apart(path)
    change(header[NORM])
    put_together(path, header, body)
    with pytest.raises(SteerError, match=rf"model\.safetensors: .*tensor {NORM} {message}"):
        load(folder)


def test_a_file_that_is_cut_off_names_the_first_tensor_lost(folder: Path):
    path = folder / "model.safetensors"
    header, body = take_apart(path)
    last = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"])
    put_together(path, header, body[:-1])
    with pytest.raises(SteerError, match=rf"tensor {last} ends at byte .*: the file is cut off"):
        load(folder)


def test_wrong_dtypes_and_unknown_names(folder: Path):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {NORM: tensors[NORM].to(torch.float64)}, path)
    with pytest.raises(SteerError, match=rf"safetensors: tensor {NORM} is F64; expected F32 or"):
        load(folder)
    save_file(tensors | {"model.layers.9.mlp.up_proj.weight": torch.zeros(1)}, path)
    with pytest.raises(SteerError, match=r"safetensors: unexpected tensor model\.layers\.9"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "..", "a/b.safetensors", "x.bin"]
)
def test_a_shard_that_leaves_the_folder(folder: Path, name: str):
    index = {"weight_map": {NORM: name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SteerError, match="is not a safetensors file of this folder"):
        load(folder)


def test_shards_hold_what_one_file_does(folder: Path):
    whole = load(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    names = sorted(tensors)
    index = {}
    for i in range(3):
        part = f"model-{i + 1:05}-of-00003.safetensors"
        save_file({n: tensors[n] for n in names[i::3]}, folder / part)
        index |= dict.fromkeys(names[i::3], part)
    path.unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    sharded = load(folder)
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)
    save_file({names[0]: tensors[names[0]]}, folder / "model-00002-of-00003.safetensors")
    with pytest.raises(SteerError, match=f"tensor {names[0]} appears twice"):
        load(folder)


class Trap:
    """Unpickling it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
def test_a_pickle_is_never_loaded(folder: Path, tmp_path: Path, name: str):
    """Neither beside the tensors nor in their place."""
    trace = tmp_path / "executed"
    trap = pickle.dumps(Trap(trace))
    (folder / name).write_bytes(trap)
    if name == "model.safetensors":
        with pytest.raises(SteerError, match=r"model\.safetensors: not a readable"):
            load(folder)
    else:
        load(folder)
        (folder / "model.safetensors").unlink()
        with pytest.raises(SteerError, match="pickles are never loaded"):
            load(folder)
    assert not trace.exists()
    pickle.loads(trap)
    assert trace.exists(), "the trap is not armed: this proves nothing"


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_flipped_bytes_are_refused_or_harmless(folder: Path, data: st.DataObject):
    """Bytes flipped, cut, or put in: an error in one line, or the shapes that were asked for."""
    good = (TINY / "small" / "model.safetensors").read_bytes()
    length = 8 + int.from_bytes(good[:8], "little")
    damaged = bytearray(good)
    header = data.draw(st.booleans(), "in the header")
    places = st.integers(0, (length if header else len(good)) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4), "places"):
        damaged[place] = data.draw(st.integers(0, 255), "byte")
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 100]), "cut")
    (folder / "model.safetensors").write_bytes(damaged[: len(damaged) - cut])
    try:
        weights = load(folder)
    except SteerError as error:
        assert "\n" not in str(error) and str(folder) in str(error)
    else:
        assert weights[EMBEDDING].shape == WHOLE[EMBEDDING].shape


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_nonsense_in_a_header_is_refused_or_harmless(folder: Path, data: st.DataObject):
    """Valid JSON with wrong values in it, which random bytes rarely make."""
    path = folder / "model.safetensors"
    header, body = take_apart(TINY / "small" / "model.safetensors")
    name = data.draw(st.sampled_from(sorted(header)))
    odd = st.one_of(
        st.none(),
        st.booleans(),
        st.text(max_size=3),
        st.integers(-(2**70), 2**70),
        st.lists(st.integers(-5, 10**6), max_size=3),
        st.just({}),
        st.sampled_from(["BF16", "F32", "BOOL", "U8", "F8_E4M3", "F4"]),
    )
    if data.draw(st.booleans()) and name != "__metadata__":
        header[name][data.draw(st.sampled_from(["shape", "dtype", "data_offsets"]))] = data.draw(
            odd
        )
    else:
        header[name] = data.draw(odd)
    put_together(path, header, body)
    try:
        weights = load(folder)
    except SteerError as error:
        assert "\n" not in str(error) and str(folder) in str(error)
    else:
        assert weights[EMBEDDING].shape == WHOLE[EMBEDDING].shape


MEASURE = """
import re, sys, torch
from pathlib import Path
from engine.models.checkpoint import load_config, load_weights
def kib(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
torch.set_num_threads(1)
folder = Path(sys.argv[1])
config, before = load_config(folder), kib("VmRSS")
weights = load_weights(folder, config, torch.bfloat16)
print((kib("VmHWM") - before) * 1024 / sum(w.numel() * w.itemsize for w in weights.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_loading_holds_one_copy(tmp_path: Path):
    """Mapped pages included, the peak stays near the size of the weights: 80 MB here."""
    config = json.loads((TINY / "small" / "config.json").read_text())
    config |= {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 1024}
    (tmp_path / "config.json").write_text(json.dumps(config | {"head_dim": 256}))
    shapes = expected_shapes(load_config(tmp_path))
    tensors = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 0.9 < float(out) < 1.3
