"""CPU kernels. Addresses are not checked here: kernels/cpu.py does."""

from collections.abc import Sequence
from typing import Final

LAYER_WEIGHTS: Final[tuple[str, ...]]
STATISTICS: Final[tuple[str, ...]]
LONGEST_HEAD: Final[int]
QUERY_ROWS: Final[int]

def instruction_sets() -> list[str]: ...
def confidence(
    instruction_set: str,
    logits: int,
    rows: int,
    stride: int,
    vocabulary: int,
    floats: int,
    ids: int,
    valid: int,
) -> None: ...
def draw(
    instruction_set: str,
    wide: bool,
    logits: int,
    rows: int,
    stride: int,
    vocabulary: int,
    columns: Sequence[int],
    tokens: int,
) -> None: ...

class Decoder:
    def __init__(
        self,
        half: bool,
        instruction_set: str,
        threads: int,
        sizes: Sequence[int],
        eps: float,
        weights: Sequence[int],
        layers: Sequence[Sequence[int]],
    ) -> None: ...
    def forward(
        self,
        batch: Sequence[int],
        sizes: Sequence[int],
        layout: Sequence[int],
        arena: int,
        logits: int,
        hidden: int,
    ) -> None: ...
    def head(self, hidden: int, rows: int, logits: int) -> None: ...
