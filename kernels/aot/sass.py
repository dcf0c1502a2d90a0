"""Machine code of compiled kernels, read with the tools that come in the triton wheel."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

INSTRUCTION = 16  # bytes, since Volta
_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/")  # an instruction begins with its address


def resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack and local memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool("cuobjdump", "--dump-resource-usage", path)
    numbers = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
    if numbers is None:
        raise RuntimeError(f"no resource usage in: {usage}")
    registers, stack, local = map(int, numbers.groups())
    return registers, stack + local


def instructions(cubins: Sequence[bytes], architecture: str) -> list[list[str]]:
    """The instructions of each kernel, a line each; ``architecture`` as in "SM90".

    Their code is joined and disassembled at once: the tool takes half a second to start, however
    little it is given. So addresses and the targets of jumps are those within the joined code.
    """
    codes = [_code(cubin) for cubin in cubins]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.bin"
        path.write_bytes(b"".join(codes))
        text = _tool("nvdisasm", "-b", architecture, path)
    lines = iter([line for line in text.splitlines() if _LINE.search(line)])
    taken = [[next(lines) for _ in range(len(code) // INSTRUCTION)] for code in codes]
    if next(lines, None) is not None:
        raise RuntimeError("nvdisasm gave more instructions than the kernels have")
    return taken


def _code(cubin: bytes) -> bytes:
    """The section of an ELF file (64 bits, little-endian) that holds its one kernel's code."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", cubin, 0x3A)
    # Of each section: name, type, flags, address, offset, size, ...
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    names = sections[names_at][4]
    codes = [
        cubin[offset : offset + length]
        for name, _, _, _, offset, length in sections
        if cubin[names + name :].startswith(b".text.")
    ]
    if len(codes) != 1 or len(codes[0]) % INSTRUCTION:
        raise RuntimeError(f"expected the code of one kernel, got {[len(code) for code in codes]}")
    return codes[0]


def _tool(name: str, *arguments: object) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    command = [str(path), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
