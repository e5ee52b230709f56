"""The compile gate: every configuration that M3 uses, compiled for Hopper on a machine without a GPU, and judged.

    python -m m3_kernels.gpu.compile_table           compile all, compare with the committed table; 1 if any is worse
    python -m m3_kernels.gpu.compile_table --write   write the table anew

Always a fault: a register spilled, more shared memory than a program may have, a promised instruction that is missing.
Worse than the table: fewer programs on a multiprocessor, or more than the tolerance of registers, shared memory or
instructions. The table is compared only with what the same version of Triton makes of the sources.
"""

import argparse
import dataclasses
import importlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import triton

from m3_kernels.gpu import compile_cache
from m3_kernels.gpu.compiled import SHARED_BYTES_OF_A_PROGRAM, CompileCase, Compiled, compile_case

FAMILIES = ("index_score", "select_blocks", "union_tile", "kv_outer", "block_index", "merge", "sparse_decode")
TABLE = Path(__file__).parents[2] / "compile_table.json"

REGISTERS_TOLERATED = 8
"""The step in which registers are handed out."""
INSTRUCTIONS_TOLERATED = 0.05
"""Of the table's."""


def configurations() -> list[CompileCase]:
    """Of all families. Raises ValueError if two have the same name."""
    cases = [
        case for family in FAMILIES for case in importlib.import_module(f"m3_kernels.gpu.{family}").configurations()
    ]
    names = [case.name for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"configurations of the same name: {', '.join(twice)}")
    return cases


def compile_all(cases: Sequence[CompileCase], processes: int) -> dict[str, Compiled]:
    """Compile configurations, in so many processes: the compiler uses one core. By name, in their order."""
    names = [case.name for case in cases]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return dict(zip(names, pool.map(_compile_named, names), strict=True))


def known_or_compiled(cases: Sequence[CompileCase], processes: int) -> tuple[dict[str, Compiled], int]:
    """What the configurations compile to, by name, and how many of them had to be compiled for that."""
    found = {case.name: known for case in cases if (known := compile_cache.find(case)) is not None}
    unknown = [case for case in cases if case.name not in found]
    if unknown:
        anew = compile_all(unknown, processes)
        for case in unknown:
            compile_cache.keep(case, anew[case.name])
        found |= anew
    return {case.name: found[case.name] for case in cases}, len(unknown)


def faults(case: CompileCase, found: Compiled) -> list[str]:
    """What no configuration may do, whatever the table says."""
    wrong = []
    if found.spill_stores:
        wrong.append(f"{case.name}: spills registers, in {found.spill_stores} places")
    if found.shared_bytes > SHARED_BYTES_OF_A_PROGRAM:
        wrong.append(
            f"{case.name}: {found.shared_bytes} bytes of shared memory, the chip has {SHARED_BYTES_OF_A_PROGRAM}"
        )
    if case.instruction and not found.mix.get(case.instruction):
        wrong.append(f"{case.name}: promises {case.instruction} and has {dict(found.mix)}")
    return wrong


def worse(name: str, found: Compiled, table: Compiled) -> list[str]:
    """In what a configuration is worse than the table says, beyond what is tolerated."""
    limits = {
        "registers": table.registers + REGISTERS_TOLERATED,
        "shared_bytes": table.shared_bytes,
        "instructions": int(table.instructions * (1 + INSTRUCTIONS_TOLERATED)),
    }
    lost = [
        f"{name}: {field} {getattr(found, field)}, in the table {getattr(table, field)} (at most {limit} tolerated)"
        for field, limit in limits.items()
        if getattr(found, field) > limit
    ]
    if found.programs < table.programs:
        lost.append(f"{name}: {found.programs} programs fit a multiprocessor, in the table {table.programs}")
    return lost


def compare(found: Mapping[str, Compiled], table: Mapping[str, Compiled]) -> list[str]:
    """All that is worse, and what only one of the two has."""
    lines = [f"{name}: not in the table; write it anew" for name in found if name not in table]
    lines += [f"{name}: in the table, and no longer compiled; write it anew" for name in table if name not in found]
    return lines + [line for name in found if name in table for line in worse(name, found[name], table[name])]


def read(path: Path) -> tuple[str, dict[str, Compiled]]:
    """The version of Triton that made the table, and its rows."""
    stored = json.loads(path.read_text())
    return stored["triton"], {name: Compiled(**row) for name, row in stored["configurations"].items()}


def write(path: Path, cases: Sequence[CompileCase], found: Mapping[str, Compiled]) -> None:
    """The table, and beside it the same for people."""
    rows = {name: dataclasses.asdict(row) for name, row in found.items()}
    path.write_text(json.dumps({"triton": triton.__version__, "configurations": rows}, indent=1) + "\n")
    path.with_suffix(".md").write_text(_for_people(cases, found))


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m m3_kernels.gpu.compile_table", description="The compile gate.")
    parser.add_argument("--write", action="store_true", help="write the table anew")
    parser.add_argument("--table", type=Path, default=TABLE, help="the JSON file (default: %(default)s)")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    cases = configurations()
    found, anew = known_or_compiled(cases, os.cpu_count() or 1)
    wrong = [line for case in cases for line in faults(case, found[case.name])]
    if options.write:
        if not wrong:
            write(options.table, cases, found)
        compared = "the table is kept as it was" if wrong else f"written to {options.table.name}"
    else:
        version, table = read(options.table)
        same = version == triton.__version__
        wrong += compare(found, table) if same else []
        compared = f"compared with {options.table.name}" if same else f"not compared: the table is of Triton {version}"
    summary = f"{len(cases)} configurations compiled for Hopper by Triton {triton.__version__}"
    summary += f" ({anew} now, in {time.monotonic() - begun:.0f} s), {compared}: "
    summary += f"{len(wrong)} faults" if wrong else "no fault"
    sys.stdout.write("".join(f"{line}\n" for line in [*wrong, summary]))
    return 1 if wrong else 0


def _compile_named(name: str) -> Compiled:
    """A kernel does not travel between processes, its name does."""
    return compile_case(next(case for case in configurations() if case.name == name))


def _for_people(cases: Sequence[CompileCase], found: Mapping[str, Compiled]) -> str:
    lines = [
        "# What the kernels compile to",
        "",
        f"For sm_90a (H100, H200), by Triton {triton.__version__}, on a machine without a GPU; written by",
        "`python -m m3_kernels.gpu.compile_table --write` and compared in every run of the tests: a configuration that",
        "spills, loses its tensor-core instruction, or needs more than the tolerance fails. *Programs*: how many fit a",
        "multiprocessor at a time, by registers, threads and shared memory; *resident*, their warps. Instructions are",
        "counted in the text of a kernel, not as often as they run. None of this is a time.",
        "",
        "| configuration | warps | stages | registers | spills | shared KiB | programs | resident | instructions |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --- |",
    ]
    for case in cases:
        row = found[case.name]
        mix = " ".join(f"{name} {count}" for name, count in row.mix.items())
        lines.append(
            f"| {case.name} | {case.num_warps} | {case.num_stages} | {row.registers} | {row.spill_stores} "
            f"| {row.shared_bytes / 1024:.1f} | {row.programs} | {row.programs * case.num_warps} "
            f"| {row.instructions}: {mix} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
