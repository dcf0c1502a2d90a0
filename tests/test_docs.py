"""Files that the documents name exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A file of the project with its folder, as it stands in a sentence.
NAMED = re.compile(r"`((?:engine|kernels|csrc|bench|tests|docs)/[\w./-]+\.(?:py|h|cpp|md|svg))`")


def test_named_files_exist():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    missing = [
        f"{page.name}: {path}"
        for page in pages
        for path in NAMED.findall(page.read_text())
        if not (ROOT / path).exists()
    ]
    assert missing == []


def test_linked_files_exist():
    missing = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for path in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / path).exists():
                missing.append(f"{page.name}: {path}")
    assert missing == []
