"""How a text may go on by what stood in it before, by plain search. See csrc/text/lookup.h."""

from __future__ import annotations

LONGEST_MATCH = 5


def look_up(text: list[int], shortest: int, count: int) -> list[int]:
    """The tokens after the last place where the text's last tokens stood before; as many of these
    as possible. A text that repeats itself is taken to go on so."""
    for size in range(min(LONGEST_MATCH, len(text) - 1), shortest - 1, -1):
        for start in range(len(text) - size - 1, -1, -1):
            if text[start : start + size] == text[-size:]:
                longer = list(text)
                for i in range(count):
                    longer.append(longer[start + size + i])
                return longer[len(text) :]
    return []
