"""The context of a part in its process: where rows go, the size of its run, and the pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.gpu_quick.output import ROWS, tell
from bench.lanes.shared import Shared
from bench.rows import RowWriter

if TYPE_CHECKING:
    import torch

    from kernels.aot.variant import ModelShape

QUICK_PAIR = "dummy-tiny"
CRASH = "runs"  # the check of parity that fails where the engine raises an error


class NotRunError(RuntimeError):
    """A part cannot run here, which does not count as a failure; the message says why."""


class PartFailedError(AssertionError):
    """A part found something wrong. ``detail`` is added to its result.

    detail: ``parity`` says where parity failed; ``rest`` names the pieces after one that lost the
        card, which go on in another process.
    """

    def __init__(self, message: str, **detail: Any) -> None:
        super().__init__(message)
        self.detail = detail


def first_line(error: Exception) -> str:
    """The first line of an error's message, with its type."""
    said = (str(error).strip() or "no message").splitlines()[0]
    return said if isinstance(error, PartFailedError) else f"{type(error).__name__}: {said}"


@dataclass
class Scene:
    """The context of one process.

    quick: run at the smallest sizes.
    rehearses: runs only so that kernels compile: models of one layer, and no row is kept.
    only: pieces of a part; empty for all.
    ahead_of: keys of the parts whose kernels are to be compiled.
    parity: where parity failed, for the part that bisects it.
    given_pair: the pair that an earlier process of the run found to fit the card.
    seconds: limit of the part that runs now.
    detail: facts that are added to the part's result.
    """

    folder: Path
    quick: bool = False
    rehearses: bool = False
    only: Sequence[str] = ()
    ahead_of: Sequence[str] = ()
    parity: dict[str, Any] = field(default_factory=dict)
    given_pair: str = ""
    seconds: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def shared(self) -> Shared:
        """The state that the benches of this process share."""
        return Shared(roughly=self.rehearses)

    def pieces(self, *names: str) -> list[str]:
        """The pieces that are to run."""
        return [name for name in names if not self.only or name in self.only]

    def note(self, text: str) -> None:
        """Print a line on the terminal where the run was started."""
        if not self.rehearses:
            tell(self.folder, event="note", text=text)

    def writer(self) -> RowWriter:
        """A writer of rows, which name the card."""
        import torch

        path = None if self.rehearses else self.folder / ROWS
        return RowWriter(path, append=True, gpu=torch.cuda.get_device_name())

    def bench_flags(self, *own: str) -> list[str]:
        """The command line of a bench of both models."""
        flags = ["--device", "cuda", "--pair", self.pair, *own]
        if self.quick:
            flags += ["--quick"]
        if self.quick or self.rehearses:
            flags += ["--layers", "1", "--repeats", "2"]
        if not self.rehearses:
            flags += ["--json", str(self.folder / ROWS), "--append"]
        return flags

    @property
    def device(self) -> torch.device:
        """The card's torch device."""
        import torch

        return torch.device("cuda", torch.cuda.current_device())

    @cached_property
    def pair(self) -> str:
        """The pair to measure: a smaller one if the card does not hold 1.5B and 32B."""
        if self.quick or self.given_pair:
            return self.given_pair or QUICK_PAIR
        from bench.gpu_quick.fitting import DEFAULT, fitting_pair

        found = fitting_pair()
        if found is None:
            raise NotRunError("the card's memory holds no pair of those that are known")
        tell(self.folder, event="pair", pair=found)
        if found != DEFAULT:
            self.note(f"the card's memory does not hold {DEFAULT}: {found} runs instead")
            with self.writer() as writer:
                writer.write(
                    {"bench": "gpu_quick", "kind": "pair", "asked": DEFAULT, "pair": found}
                )
        return found

    @property
    def shapes(self) -> list[ModelShape]:
        """Both models' shapes, on which kernels are specialised, small first."""
        from bench.lanes.pairs import dummy_pair
        from kernels.aot.variant import ModelShape

        names = self.pair.split("/") if "/" in self.pair else ("small", "large")
        return [
            ModelShape(
                name,
                c.hidden_size,
                c.intermediate_size,
                c.heads,
                c.kv_heads,
                c.head_dim,
                c.vocab_size,
            )
            for name, c in zip(names, dummy_pair(self.pair).shapes, strict=True)
        ]
