"""One specialisation of a Triton kernel, as a launcher would build it, for gates without a GPU."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kernels.aot.sass import instructions, resource_usage

CAPABILITY = 90  # Hopper
MOST_SHARED = 227 * 1024  # bytes that one program can have there


@dataclass(frozen=True)
class ModelShape:
    """What kernels are specialised on. Sizes in elements; ``head_rows``: of the LM head."""

    name: str
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    head_rows: int


@dataclass(frozen=True)
class Variant:
    """A kernel with its types, constants and options.

    kernel: the ``@triton.jit`` function.
    signature: argument -> type, in order ("*bf16", "*fp32", "*i32", "i32", ...); without constants.
    constants: constexpr argument -> value.
    aligned: arguments that launchers pass as multiples of 16 (pointers and sizes).
    elements: that one program works on, for the instruction budget; 0: none.
    budget: SASS instructions an element at most, static count; 0: none.
    wide: whether some load must be of 16 bytes. One is enough: the share of the bytes that come so
        is reported, and held to nothing.
    registers: at most so many.
    """

    op: str
    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: tuple[str, ...] = ()
    warps: int = 4
    stages: int = 3
    elements: int = 0
    budget: float = 0.0
    wide: bool = True
    registers: int = 255


@dataclass(frozen=True)
class Report:
    """What the compiler made of a variant.

    spills: bytes of local memory a thread. loads: count of global loads by width in bits.
    """

    variant: Variant
    registers: int
    spills: int
    shared: int
    instructions: int
    loads: Mapping[int, int] = field(default_factory=dict)

    @property
    def per_element(self) -> float:
        """Static SASS instructions of all threads of a program over its elements."""
        threads = 32 * self.variant.warps
        return self.instructions * threads / self.variant.elements if self.variant.elements else 0.0

    @property
    def wide_share(self) -> float:
        """Of the bytes of its global loads, in loads of 16 bytes. A load in a loop counts once."""
        total = sum(width * count for width, count in self.loads.items())
        return 128 * self.loads.get(128, 0) / total if total else 0.0

    def failures(self) -> list[str]:
        """What breaks the limits, in words; empty if nothing does."""
        v, found = self.variant, []
        if self.spills:
            found.append(f"spills {self.spills} bytes a thread")
        if self.registers > v.registers:
            found.append(f"{self.registers} registers, at most {v.registers}")
        if self.shared > MOST_SHARED:
            found.append(f"{self.shared} bytes of shared memory, at most {MOST_SHARED}")
        if v.wide and not self.loads.get(128):
            found.append(f"no 16-byte loads: {dict(self.loads)}")
        if v.budget and self.per_element > v.budget:
            found.append(f"{self.per_element:.1f} instructions an element, at most {v.budget:g}")
        return found


@dataclass(frozen=True)
class Compiled:
    """A variant's machine code. shared: bytes of shared memory of a program."""

    variant: Variant
    cubin: bytes
    shared: int


def compile_variant(variant: Variant) -> Compiled:
    """Compile ahead of time for sm_90. Needs no GPU.

    The kernels must have been imported without TRITON_INTERPRET.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(variant.kernel.arg_names)
    signature = {
        name: "constexpr" if name in variant.constants else variant.signature[name]
        for name in names
    }
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in variant.aligned}
    source = ASTSource(
        fn=variant.kernel,
        signature=signature,
        constexprs={(names.index(n),): v for n, v in variant.constants.items()},
        attrs=attributes,
    )
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=options)
    return Compiled(variant, compiled.asm["cubin"], int(compiled.metadata.shared))


def read_reports(compiled: Sequence[Compiled]) -> list[Report]:
    """What the compiler made of each; only Triton's tools are needed."""
    codes = instructions([each.cubin for each in compiled], f"SM{CAPABILITY}")
    return [_report(each, lines) for each, lines in zip(compiled, codes, strict=True)]


def _report(compiled: Compiled, lines: list[str]) -> Report:
    registers, spills = resource_usage(compiled.cubin)
    loads = Counter(_width(line) for line in lines if re.search(r"\b(LDG|LDGSTS)\.", line))
    return Report(compiled.variant, registers, spills, compiled.shared, len(lines), loads)


def _width(line: str) -> int:
    """Bits of a global load, by its opcode: addresses have suffixes of their own."""
    opcode = line.split("LDG", 1)[1].split()[0]
    width = re.search(r"\.(8|16|U8|U16|S8|S16|64|128)\b", opcode)
    return int(width[1].strip("US")) if width else 32
