"""Every configuration compiles for Hopper as the committed table says, and what gets worse is noticed.

The compiler runs in processes of its own: it takes time and memory, and must not see the interpreter's variable.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from m3_kernels.gpu import compile_cache, compile_table
from m3_kernels.gpu.compiled import CompileCase, Compiled, programs_of_a_multiprocessor

CASE = CompileCase("some/kernel", None, {}, {}, num_warps=4, num_stages=3, instruction="HGMMA")
GOOD = Compiled(
    registers=100, shared_bytes=65536, spill_stores=0, instructions=400, mix={"HGMMA": 8, "BAR": 2}, programs=3
)

A_TILE_THAT_SPILLS = """
from dataclasses import replace
from m3_kernels.gpu import compile_cache, compile_table, union_tile
from m3_kernels.gpu.compiled import compile_case

case = next(case for case in union_tile.configurations() if case.name == "union_tile/dense/bf16")
case = replace(case, num_warps=case.num_warps // 2)  # twice as much in the registers of each thread
found = compile_cache.find(case) or compile_case(case)
compile_cache.keep(case, found)
print(compile_table.faults(case, found))
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)


@pytest.mark.timeout(900)  # a minute or two, unless many share the machine; seconds where all of it is known
def test_every_configuration_compiles_as_the_table_says() -> None:
    done = run("-m", "m3_kernels.gpu.compile_table")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(compile_table.configurations())} configurations compiled" in done.stdout
    assert "compared with compile_table.json: no fault" in done.stdout


def test_a_tile_that_spills_is_a_fault() -> None:
    done = run("-c", A_TILE_THAT_SPILLS)
    assert "union_tile/dense/bf16: spills registers" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (replace(GOOD, spill_stores=4), "some/kernel: spills registers, in 4 places"),
        (replace(GOOD, shared_bytes=232449), "some/kernel: 232449 bytes of shared memory, the chip has 232448"),
        (replace(GOOD, mix={"HMMA": 8}), "some/kernel: promises HGMMA and has {'HMMA': 8}"),
    ],
)
def test_faults_are_named(found: Compiled, fault: str) -> None:
    assert compile_table.faults(CASE, found) == [fault]


def test_what_keeps_every_promise_has_no_fault() -> None:
    assert compile_table.faults(CASE, GOOD) == []
    assert compile_table.faults(replace(CASE, instruction=None), replace(GOOD, mix={})) == []


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (replace(GOOD, registers=109), "a: registers 109, in the table 100 (at most 108 tolerated)"),
        (replace(GOOD, shared_bytes=65537), "a: shared_bytes 65537, in the table 65536 (at most 65536 tolerated)"),
        (replace(GOOD, instructions=421), "a: instructions 421, in the table 400 (at most 420 tolerated)"),
        (replace(GOOD, programs=2), "a: 2 programs fit a multiprocessor, in the table 3"),
    ],
)
def test_what_got_worse_than_the_table_is_named(found: Compiled, line: str) -> None:
    assert compile_table.compare({"a": found}, {"a": GOOD}) == [line]


def test_what_is_within_the_tolerance_or_better_is_no_fault() -> None:
    within = replace(GOOD, registers=108, instructions=420)
    better = replace(GOOD, registers=60, shared_bytes=0, instructions=100, programs=8)
    assert compile_table.compare({"a": within, "b": better}, {"a": GOOD, "b": GOOD}) == []


def test_the_table_has_every_configuration_and_no_other() -> None:
    assert compile_table.compare({"new": GOOD}, {"gone": GOOD}) == [
        "new: not in the table; write it anew",
        "gone: in the table, and no longer compiled; write it anew",
    ]


def test_a_configuration_is_known_until_something_that_decides_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("M3_CACHE_DIR", str(tmp_path))
    case = compile_table.configurations()[0]
    assert compile_cache.find(case) is None
    compile_cache.keep(case, GOOD)
    assert compile_cache.find(case) == GOOD
    assert compile_table.known_or_compiled([case], processes=1) == ({case.name: GOOD}, 0)
    for other in (replace(case, num_warps=2 * case.num_warps), replace(case, signature={**case.signature, "x": "i32"})):
        assert compile_cache.find(other) is None
    (kept,) = (tmp_path / "kernels").iterdir()
    kept.write_text("{")
    assert compile_cache.find(case) is None


def test_a_written_table_is_read_as_it_was(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    compile_table.write(table, [CASE], {CASE.name: GOOD})
    version, rows = compile_table.read(table)
    assert version == json.loads(table.read_text())["triton"]
    assert rows == {CASE.name: GOOD}
    assert (
        "| some/kernel | 4 | 3 | 100 | 0 | 64.0 | 3 | 12 | 400: HGMMA 8 BAR 2 |" in table.with_suffix(".md").read_text()
    )


@pytest.mark.parametrize(
    ("registers", "threads", "shared_bytes", "programs"),
    [
        (128, 128, 0, 4),  # 65,536 registers
        (129, 128, 0, 3),  # handed out by 8
        (32, 1024, 0, 2),  # 2,048 threads
        (16, 32, 0, 32),  # 32 programs
        (32, 128, 113 * 1024, 2),  # 228 KiB, 1 KiB of each program's the driver's
        (32, 128, 114 * 1024, 1),
    ],
)
def test_programs_of_a_multiprocessor(registers: int, threads: int, shared_bytes: int, programs: int) -> None:
    assert programs_of_a_multiprocessor(registers, threads, shared_bytes) == programs
