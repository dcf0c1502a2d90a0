"""How often a new engine opens the files of its checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .gguf_files import random_model, write_gguf
from .scripted import scripted_checkpoint

# Python's own opens come from an audit hook. Two libraries open files in Rust: their public names
# are replaced by ones that count, before the engine takes them. Opens that read numbers are counted
# apart: a file of weights is mapped anew for each layer, so that its pages do not stay in memory.
COUNT = """
import json, os, sys
from collections import Counter
import safetensors, tokenizers

words, numbers = Counter(), Counter()

def hook(event, args):
    if event != "open" or not isinstance(args[0], (str, os.PathLike)):
        return
    frame, mapped = sys._getframe(1), False
    while frame:
        mapped = mapped or frame.f_code.co_filename.endswith("memmap.py")
        frame = frame.f_back
    (numbers if mapped else words)[os.fspath(args[0])] += 1

class Reader:
    def __init__(self, path, framework):
        self.path, self.file, self.reads = str(path), safe_open(path, framework=framework), False
    def __enter__(self):
        self.file.__enter__()
        return self
    def __exit__(self, *error):
        (numbers if self.reads else words)[self.path] += 1
        return self.file.__exit__(*error)
    def get_tensor(self, name):
        self.reads = True
        return self.file.get_tensor(name)
    def __getattr__(self, name):
        return getattr(self.file, name)

class Tokenizers:
    def __call__(self, model):
        return Tokenizer(model)
    def from_file(self, path):
        words[path] += 1
        return Tokenizer.from_file(path)

safe_open, safetensors.safe_open = safetensors.safe_open, Reader
Tokenizer, tokenizers.Tokenizer = tokenizers.Tokenizer, Tokenizers()
sys.addaudithook(hook)
from engine import Engine, EngineConfig
small, large = sys.argv[1:]
config = EngineConfig(arena_tokens=2048, max_sequences=4, delimiters=("a",))
Engine("custom", small=small, large=large, config=config)
kept = [{p: n for p, n in c.items() if p.startswith((small, large))} for c in (words, numbers)]
print(json.dumps(kept))
"""


def opens(small: Path, large: Path) -> tuple[dict[str, int], dict[str, int]]:
    """By path: opens for words and headers, and opens for numbers, of one new engine."""
    command = [sys.executable, "-c", COUNT, str(small), str(large)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words, numbers = json.loads(out)
    return words, numbers


def folder_of_many_files(folder: Path, **config: bool) -> Path:
    pieces, special = [*"?abc"], ["<end>", "<turn>"]
    end, turn = len(pieces), len(pieces) + 1
    scripted_checkpoint(
        folder,
        pieces,
        ["a", "b", "<end>"],
        special,
        {"eos_token_id": end, **config},
        generation_config={"eos_token_id": [end, turn], "do_sample": True, "top_k": 3},
        tokenizer_config={"eos_token": "<end>"},
        special_tokens_map={"eos_token": "<turn>"},
        added_tokens={"<end>": end, "<turn>": turn},
    )
    (folder / "chat_template.jinja").write_text("{% for m in messages %}a{% endfor %}")
    return folder


@pytest.mark.parametrize("tied", [False, True])
def test_each_file_of_a_folder_is_read_once(tied: bool, tmp_path: Path):
    """A head that should be tied and differs is found by reading the weights for the shape."""
    small, large = (
        folder_of_many_files(tmp_path / name, tie_word_embeddings=tied)
        for name in ("small", "large")
    )
    words, numbers = opens(small, large)
    assert words == {str(path): 1 for folder in (small, large) for path in folder.iterdir()}
    parts = ("embedding", "layer", "norm", "head")
    weights = (small / "model.safetensors", large / "model.safetensors")
    assert numbers == {str(path): len(parts) + tied for path in weights}


def test_the_header_of_a_gguf_file_is_read_once(tmp_path: Path):
    model = random_model("llama")
    paths = [write_gguf(tmp_path / f"{name}.gguf", model) for name in ("small", "large")]
    words, numbers = opens(*paths)
    assert words == {str(path): 1 for path in paths}
    tied = model.config.tie_word_embeddings  # then the file lacks one of the state's two names
    tensors = len(model.state_dict()) - tied
    assert numbers == {str(path): tensors for path in paths}
