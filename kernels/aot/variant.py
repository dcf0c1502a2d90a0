"""One specialisation of a Triton kernel, as a launcher would build it, for gates without a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


def compile_variant(variant: Variant) -> Report:
    """Compile ahead of time for sm_90 and read the result. Needs no GPU, only Triton's tools.

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
    return _read(variant, compiled.asm["cubin"], int(compiled.metadata.shared))


def _read(variant: Variant, cubin: bytes, shared: int) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool("cuobjdump", "--dump-resource-usage", path)
        sass = _tool("nvdisasm", "-c", path)
    registers = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
    if registers is None:
        raise RuntimeError(f"no resource usage of {variant.name} in: {usage}")
    lines = [line for line in sass.splitlines() if re.search(r"/\*[0-9a-f]{4,}\*/", line)]
    loads = Counter(_width(line) for line in lines if re.search(r"\b(LDG|LDGSTS)\.", line))
    return Report(
        variant, int(registers[1]), int(registers[2]) + int(registers[3]), shared, len(lines), loads
    )


def _width(line: str) -> int:
    """Bits of a global load, by its opcode: addresses have suffixes of their own."""
    opcode = line.split("LDG", 1)[1].split()[0]
    found = re.search(r"\.(8|16|U8|U16|S8|S16|64|128)\b", opcode)
    return int(found[1].strip("US")) if found else 32


def _tool(name: str, *arguments: object) -> str:
    """Runs a tool that comes in the triton wheel."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    command = [str(path), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
