"""Tokenizers out of GGUF files, against those that transformers makes, and what is refused."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from tokenizers import Tokenizer as HFTokenizer
from transformers import AutoTokenizer

from bench import smollm2
from engine import SteerError
from engine.gguf.file import GgufFile
from engine.text.gguf_tokenizer import end_ids
from engine.text.tokenizer import Tokenizer

from .gguf_files import CONTROL, END, KINDS, NORMAL, SPECIAL, TEMPLATE, TOKENS, add_tokenizer
from .hard_text import HARD

ARCHITECTURES = {"qwen2": "qwen2", "llama-bpe": "llama", "gpt-2": "qwen2"}


def write(
    path: Path,
    pre: str = "qwen2",
    change: Callable[[GGUFWriter], None] = lambda writer: None,
    tokens: list[str] | None = None,
    kinds: list[int] | None = None,
) -> Path:
    """A file with nothing but a tokenizer in it."""
    writer = GGUFWriter(path, ARCHITECTURES.get(pre, "llama"))
    add_tokenizer(writer, tokens or TOKENS, kinds or KINDS, pre)
    change(writer)
    return written(writer, path)


def written(writer: GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _composed(text: str) -> bool:
    """Whether Qwen's tokenizer.json, which composes characters first, leaves a text as it is.

    Where it does not, transformers' reading of a file differs from the folder's.
    """
    return text == unicodedata.normalize("NFC", text)


def test_qwen_2_as_transformers_has_it(tmp_path: Path):
    path = write(tmp_path / "m.gguf")
    mine, theirs = Tokenizer(path), AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in (*filter(_composed, HARD), "the 123 12 thethe <tool><|im_end|>"):
        ids = mine.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False), text
        assert mine.decode(ids) == theirs.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    assert mine.encode("e\u0301") == mine.encode("\u00e9")
    assert mine.size == len(TOKENS) - 1  # an unused one is no token
    assert mine.chat_template is not None and mine.chat_template.source == TEMPLATE
    assert mine.bytes[END] == b"" and mine.bytes[TOKENS.index("<tool>")] == b"<tool>"


# The published patterns, written out: what each of them makes of one text.
PIECES = {
    "qwen2": ["it", "'s", " ", "1", "2", "3", " don", "'t", "!!\n\n", "  ", " x"],
    "llama-bpe": ["it", "'s", " ", "123", " don", "'t", "!!\n\n", "  ", " x"],
    "tekken": ["it", "'s", " ", "1", "2", "3", " don", "'t", "!!\n\n", "  ", " x"],
    "smollm": ["it", "'s", " ", "1", "2", "3", " don", "'t", "!!", "\n\n  ", " x"],
    "gpt-2": ["it", "'s", " 123", " don", "'t", "!!", "\n\n  ", " x"],
}


@pytest.mark.parametrize("pre", PIECES)
def test_how_text_is_cut(pre: str, tmp_path: Path):
    tokenizer = Tokenizer(write(tmp_path / "m.gguf", pre))._tokenizer
    text = "it's 123 don't!!\n\n   x"
    cut = [text[first:last] for _, (first, last) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert cut == PIECES[pre]
    camel = [part for part, _ in tokenizer.pre_tokenizer.pre_tokenize_str("fooBar")]
    assert camel == (["foo", "Bar"] if pre == "tekken" else ["fooBar"])


def test_whole_tokens_win_over_merges_where_the_family_says_so(tmp_path: Path):
    """ "fox" is a token that no merges make."""
    tokens = [t if t != "<tool>" else "fox" for t in TOKENS]
    kinds = [NORMAL if t == "fox" else k for t, k in zip(tokens, KINDS, strict=True)]
    for pre, whole in (("llama-bpe", True), ("tekken", True), ("qwen2", False), ("gpt-2", False)):
        tokenizer = Tokenizer(write(tmp_path / f"{pre}.gguf", pre, tokens=tokens, kinds=kinds))
        assert (tokenizer.encode("fox") == [tokens.index("fox")]) == whole, pre


def test_words_of_qwen_that_look_like_control_tokens(tmp_path: Path):
    """llama.cpp's converter takes them for such; Qwen's files give them a text."""
    tokens = [t if t != "<tool>" else "<|repo_name|>" for t in TOKENS]
    kinds = [CONTROL if t == "<|repo_name|>" else k for t, k in zip(tokens, KINDS, strict=True)]
    for pre, text in (("qwen2", b"<|repo_name|>"), ("llama-bpe", b"")):
        tokenizer = Tokenizer(write(tmp_path / "m.gguf", pre, tokens=tokens, kinds=kinds))
        assert tokenizer.bytes[tokens.index("<|repo_name|>")] == text


def test_a_beginning_is_marked_where_the_file_or_the_family_says_so(tmp_path: Path):
    first = TOKENS.index(SPECIAL[0])

    def bos(flag: bool | None) -> Callable[[GGUFWriter], None]:
        def change(writer: GGUFWriter) -> None:
            writer.add_bos_token_id(first)
            if flag is not None:
                writer.add_add_bos_token(flag)

        return change

    for pre, flag, marked in (
        ("qwen2", None, False),
        ("qwen2", True, True),
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
    ):
        tokenizer = Tokenizer(write(tmp_path / "m.gguf", pre, bos(flag)))
        assert (tokenizer.encode("the", special=True)[0] == first) == marked
        assert tokenizer.encode("the")[0] != first


def test_a_real_file_is_its_converted_folder():
    """SmolLM2's: the same ids, text and end."""
    if missing := smollm2.missing():
        pytest.skip(missing)
    mine, folder = Tokenizer(smollm2.source()), Tokenizer(smollm2.folder())
    assert mine.size == folder.size
    # As transformers had it when the file was first converted, by other code.
    ids = [19556, 905, 28, 357, 506, 216, 33, 34, 35, 36, 17, 1116, 1, 3546, 46494]
    assert mine.encode("Hello world, it's 1234!\n\n<|im_start|>na\u00efve") == ids
    for text in HARD:
        assert mine.encode(text) == folder.encode(text), text
    assert mine.bytes == folder.bytes
    assert mine.chat_template and folder.chat_template
    assert mine.chat_template.source == folder.chat_template.source


SPM = [
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("</s>", 0.0, 3),
    *((f"<0x{b:02X}>", 0.0, 6) for b in range(256)),
    ("▁", -1.0, 1),
    ("t", -2.0, 1),
    ("h", -3.0, 1),
    ("e", -4.0, 1),
    ("th", -5.0, 1),
    ("he", -4.5, 1),
    ("the", -6.0, 1),
    ("▁the", -6.5, 1),
]


def write_sentencepiece(path: Path, scores: bool = True, longest: int = 1, **ids: int) -> Path:
    """``ids``: further ids of special tokens, by their keys."""
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([t if t != "h" else "h" * longest for t, _, _ in SPM])
    writer.add_token_types([k for _, _, k in SPM])
    if scores:
        writer.add_token_scores([s for _, s, _ in SPM])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for key, index in ids.items():
        writer.add_uint32(f"tokenizer.ggml.{key}", index)
    return written(writer, path)


def test_sentencepiece(tmp_path: Path):
    """As transformers reads it; the beginning is marked unless the file says no."""
    path = write_sentencepiece(tmp_path / "m.gguf")
    mine, theirs = Tokenizer(path), AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in ("the", "the the", "teh é the\n\n", "日本", "hththe"):
        assert mine.encode(text, special=True) == theirs.encode(text), text
    assert mine.encode("the", special=True) == [1, 266]
    assert mine.encode(" the") == [259, 266]  # as llama.cpp and Llama 2's tokenizer.json have it
    assert mine.bytes[3 + 0xE9] == b"\xe9" and mine.bytes[266] == b" the"


def test_a_text_ends_at_the_ends_of_text_turn_and_message(tmp_path: Path):
    path = write_sentencepiece(tmp_path / "m.gguf", eot_token_id=266, eom_token_id=265)
    assert end_ids(GgufFile(path)) == [2, 265, 266]


def _drop(key: str) -> Callable[[GGUFWriter], None]:
    return lambda writer: writer.kv_data[0].pop(f"tokenizer.{key}") and None


def _set(key: str, value: Any) -> Callable[[GGUFWriter], None]:
    def change(writer: GGUFWriter) -> None:
        writer.kv_data[0][f"tokenizer.{key}"].value = value

    return change


REFUSED: dict[str, tuple[Callable[[GGUFWriter], None], str]] = {
    "an unknown cut": (
        _set("ggml.pre", "bailingmoe"),
        r"ggml\.pre 'bailingmoe' is not supported; s",
    ),
    "no cut": (_drop("ggml.pre"), r"ggml\.pre None is not supported"),
    "another model": (
        _set("ggml.model", "rwkv"),
        r"ggml\.model 'rwkv' is not supported; supported",
    ),
    "no tokens": (_drop("ggml.tokens"), r"ggml\.tokens must be a list of texts, got None"),
    "no merges": (_drop("ggml.merges"), r"ggml\.merges must be a list of texts"),
    "half a merge": (_set("ggml.merges", ["h e", "the"]), "must be of two tokens, got 'the'"),
    "a merge of no tokens": (_set("ggml.merges", ["h e", "xx yy"]), "not a usable tokenizer"),
    "fewer types": (_set("ggml.token_type", KINDS[:-1]), r"each of 266 tokens, got 265"),
    "the same token twice": (_set("ggml.tokens", ["!", "!", *TOKENS[2:]]), "'!' has two ids"),
    "an end out of range": (_set("ggml.eos_token_id", 999), r"eos_token_id is 999, there are 266"),
    "types in words": (
        _set("ggml.token_type", ["a"] * len(KINDS)),
        "a whole number for each of 266",
    ),
    "a template without end": (_set("chat_template", "{{" + "(" * 20000), "template is malformed"),
    "a template that is none": (_set("chat_template", "{% if %}"), "chat template is malformed"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_named(case: str, tmp_path: Path):
    change, message = REFUSED[case]
    path = write(tmp_path / "m.gguf", change=change)
    with pytest.raises(SteerError, match=message) as error:
        Tokenizer(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_scores_are_needed_and_pieces_short(tmp_path: Path):
    path = write_sentencepiece(tmp_path / "m.gguf", scores=False)
    with pytest.raises(SteerError, match="scores must have one number for each token"):
        Tokenizer(path)
    path = write_sentencepiece(tmp_path / "n.gguf", longest=1001)
    with pytest.raises(SteerError, match="a token is longer than 1000 characters"):
        Tokenizer(path)


def test_a_beginning_that_is_no_token(tmp_path: Path):
    path = write(tmp_path / "m.gguf", change=lambda writer: writer.add_add_bos_token(True))
    with pytest.raises(SteerError, match="add_bos_token is set, but there is no bos_token"):
        Tokenizer(path)


def test_a_file_and_a_published_folder_are_a_pair(tmp_path: Path):
    """tokenizer.json of Qwen2.5 and of Llama 3 say the same in other words, and still say it."""
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    for pre in ("qwen2", "llama-bpe"):
        file = Tokenizer(
            write(tmp_path / "m.gguf", pre, lambda w: w.add_bos_token_id(TOKENS.index(SPECIAL[0])))
        )
        published = json.loads(file.to_json())
        published["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
        published["decoder"] = level
        for token in published["added_tokens"]:  # listed there only
            del published["model"]["vocab"][token["content"]]
        if mark := published["post_processor"]:
            mark = mark | {"pair": [*mark["single"], {"Sequence": {"id": "B", "type_id": 1}}]}
            published["post_processor"] = {"type": "Sequence", "processors": [level, mark]}
        else:
            published["post_processor"] = level
        (tmp_path / "tokenizer.json").write_text(json.dumps(published))
        folder = Tokenizer(tmp_path / "tokenizer.json")
        assert file.difference(folder) is None and folder.difference(file) is None, pre
        published["post_processor"] = level
        (tmp_path / "tokenizer.json").write_text(json.dumps(published))
        marks = file.difference(Tokenizer(tmp_path / "tokenizer.json"))
        assert (marks is None) == (pre == "qwen2"), marks
        published["pre_tokenizer"]["pretokenizers"][0]["invert"] = True
        (tmp_path / "tokenizer.json").write_text(json.dumps(published))
        assert "differs" in str(file.difference(Tokenizer(tmp_path / "tokenizer.json")))


def test_marks_that_the_library_cannot_write(tmp_path: Path):
    """A beginning that is out of use, or that it would read as something else."""

    def marked(token: str, kind: int) -> Path:
        tokens = [t if t != "<tool>" else token for t in TOKENS]
        kinds = [kind if t == token else k for t, k in zip(tokens, KINDS, strict=True)]

        def change(writer: GGUFWriter) -> None:
            writer.add_bos_token_id(tokens.index(token))
            writer.add_add_bos_token(True)

        return write(tmp_path / "m.gguf", change=change, tokens=tokens, kinds=kinds)

    for token, kind in (("gone", 5), ("$A", CONTROL), ("a:b", CONTROL), ("a b", CONTROL)):
        with pytest.raises(SteerError, match="cannot mark an end of a text"):
            Tokenizer(marked(token, kind))


def test_a_tokenizer_is_what_the_library_can_keep(tmp_path: Path):
    """It can be written as a tokenizer.json and read again."""
    tokenizer = Tokenizer(write(tmp_path / "m.gguf"))
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    again = HFTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert again.to_str() == tokenizer.to_json()
