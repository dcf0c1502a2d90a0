"""Words that the project has given up do not come back: the lists in docs/glossary.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("bench", "csrc", "docs", "engine", "kernels", "tests")
SUFFIXES = (".py", ".pyi", ".cpp", ".h", ".md")
# These two say what became of the old words.
EXCEPTIONS = ("docs/glossary.md", "CHANGELOG.md")

Words = list[tuple[re.Pattern[str], str, str]]


def retired_words(glossary: str) -> Words:
    """A pattern, the word and what to write instead, for each line of the two lists."""
    section = glossary.split("## Retired words\n")[1]
    identifiers = re.findall(r"^- `(\w+)` -> (.+)$", section, re.MULTILINE)
    phrases = re.findall(r'^- "([a-z ]+)" -> (.+)$', section, re.MULTILINE)
    assert len(identifiers) + len(phrases) == len(re.findall(r"^- ", section, re.MULTILINE))
    words = [(re.compile(rf"\b{word}\b"), word, instead) for word, instead in identifiers]
    for phrase, instead in phrases:
        # A phrase may run over the end of a line, and there over the mark of a comment.
        spaced = r"\s+(?:(?:#|//|\*)\s*)?".join(phrase.split())
        words.append((re.compile(rf"\b{spaced}\b", re.IGNORECASE), phrase, instead))
    return words


def sources(root: Path) -> Iterator[Path]:
    """The project's own text files, whether there is a git checkout or not."""
    files = [path for folder in FOLDERS for path in (root / folder).rglob("*")]
    for path in sorted([*files, *root.iterdir()]):
        named = path.relative_to(root).as_posix()
        if path.suffix in SUFFIXES and path.is_file() and named not in EXCEPTIONS:
            yield path


def found_words(root: Path, words: Words) -> list[str]:
    """``file:line: 'word', write ...`` for each place."""
    places = []
    for path in sources(root):
        text = path.read_text()
        for pattern, word, instead in words:
            for match in pattern.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                places.append(f"{path.relative_to(root)}:{line}: {word!r}, write {instead}")
    return places


WORDS = retired_words((ROOT / "docs" / "glossary.md").read_text())


def test_no_retired_word_is_left():
    places = found_words(ROOT, WORDS)
    assert not places, "\n" + "\n".join(places)


def test_a_retired_word_is_found(tmp_path: Path):
    """Each word of both lists, in each kind of file, also across lines; a part of a word is not."""
    folder = tmp_path / "engine" / "room"
    folder.mkdir(parents=True)
    for _, word, _ in WORDS:
        first, *rest = word.split()
        text = f"# one\n# {first}\n"
        if rest:  # over the end of a line
            text += f"#   {' '.join(rest)}\n"
        (folder / "module.py").write_text(text + f"x{first}y = 1\n")
        (place,) = found_words(tmp_path, WORDS)
        assert place.startswith(f"engine/room/module.py:2: {word!r}, write ")
    (folder / "module.py").unlink()
    for name in ("README.md", "csrc/core.h", "tests/test_it.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(WORDS[0][1])
        assert len(found_words(tmp_path, WORDS)) == 1
        path.unlink()


def test_the_two_lists_are_read():
    """Identifiers as they are written, phrases in any case."""
    words = {word: pattern for pattern, word, _ in WORDS}
    assert len(words) == len(WORDS) > 10
    assert any(" " in word for word in words) and any(word[0].isupper() for word in words)
    assert all(pattern.search(word) for word, pattern in words.items())
