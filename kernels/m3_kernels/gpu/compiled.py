"""One kernel compiled for a chip that need not be there, and what its machine code says.

Owns the description of a configuration (`CompileCase`) and the facts read off the compiled result: registers, spills,
shared memory, instructions, and how many programs fit a multiprocessor. It judges nothing (see `compile_table`).
Needs a process without TRITON_INTERPRET: the interpreter replaces the compiler for a whole process.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HOPPER = GPUTarget("cuda", 90, 32)

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# Limits of one multiprocessor of Hopper (CUDA programming guide, compute capability 9.0).
_REGISTERS = 65536
_THREADS = 2048
_PROGRAMS = 32
_SHARED_BYTES = 228 * 1024
_SHARED_BYTES_RESERVED = 1024  # by the driver, for each program
SHARED_BYTES_OF_A_PROGRAM = 227 * 1024


@dataclass(frozen=True)
class CompileCase:
    """A kernel with all that decides its machine code."""

    name: str
    """family/variant/type, unique: "index_score/prefill/bf16"."""
    kernel: Any
    """The `triton.jit` function."""
    signature: Mapping[str, str]
    """Type of every argument that is no constexpr: "*bf16", "i32", ...; "i32:16" if it is a multiple of 16 in M3's
    shapes (`i64:16` likewise). Pointers always are, as torch aligns what it allocates."""
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    instruction: str | None = None
    """The tensor-core instruction that it must contain: HGMMA, QGMMA or HMMA; None if it multiplies no matrices."""


@dataclass(frozen=True)
class Compiled:
    """What the machine code of one case says."""

    registers: int
    """Of a thread."""
    shared_bytes: int
    """Of a program."""
    spill_stores: int
    """Stores of registers to local memory, in the text of the kernel."""
    instructions: int
    """In the text of the kernel, whatever the loops repeat."""
    mix: Mapping[str, int]
    """How many of them by name, for the names in COUNTED."""
    programs: int
    """That fit a multiprocessor at a time, by registers, threads and shared memory."""


COUNTED = ("HGMMA", "QGMMA", "HMMA", "FFMA", "LDGSTS", "UTMALDG", "LDG", "STG", "LDS", "STS", "SHFL", "BAR", "FMNMX")


def compile_case(case: CompileCase, target: GPUTarget = HOPPER) -> Compiled:
    """Compile down to machine code and read it.

    Raises ValueError if the case names an argument that the kernel lacks, or leaves one out.
    """
    names = list(case.kernel.arg_names)
    given = [*case.signature, *case.constexprs]
    if sorted(names) != sorted(given):
        raise ValueError(f"{case.name}: the kernel takes {sorted(names)}, the case gives {sorted(given)}")
    types = {name: case.signature.get(name, "constexpr").removesuffix(":16") for name in names}
    aligned = [name for name, type_ in case.signature.items() if type_.startswith("*") or type_.endswith(":16")]
    source = ASTSource(
        fn=case.kernel,
        signature=types,
        constexprs=dict(case.constexprs),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    # Fusion is what Triton 3.6 to 3.9 do unless told; said here, so that no version warns or differs.
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True}
    binary = triton.compile(source, target=target, options=options)
    with tempfile.TemporaryDirectory() as directory:
        cubin = Path(directory) / "kernel.cubin"
        cubin.write_bytes(binary.asm["cubin"])
        usage = _cuobjdump("--dump-resource-usage", cubin)
        code = _cuobjdump("-sass", cubin)
    registers = _registers(usage)
    opcodes = Counter(_OPCODE.findall(code))
    mix = {name: opcodes[name] for name in COUNTED if opcodes[name]}
    threads = case.num_warps * target.warp_size
    programs = programs_of_a_multiprocessor(registers, threads, binary.metadata.shared)
    return Compiled(registers, binary.metadata.shared, opcodes["STL"], opcodes.total(), mix, programs)


def programs_of_a_multiprocessor(registers: int, threads: int, shared_bytes: int) -> int:
    """How many programs Hopper holds at a time. registers: of a thread; handed out by 8 to each thread of a warp."""
    by_registers = _REGISTERS // (-(-registers // 8) * 8 * threads)
    by_shared = _SHARED_BYTES // (shared_bytes + _SHARED_BYTES_RESERVED)
    return min(by_registers, by_shared, _THREADS // threads, _PROGRAMS)


# One line of machine code: `/*0010*/  @!P0 HGMMA.64x128x16.F32 R24, ...;`
_OPCODE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE)


def _registers(usage: str) -> int:
    found = re.search(r"REG:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump tells no registers: {usage!r}")
    return int(found[1])


def _cuobjdump(option: str, cubin: Path) -> str:
    done = subprocess.run([_TOOLS / "cuobjdump", option, cubin], capture_output=True, text=True, check=True)
    return done.stdout
