"""A heap that keeps what is freed pays for memory once. In processes of their own: the setting is for good."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource, sys, threading
import torch
from m3_worker.heap import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    assert keep_freed_memory()

def steps(count):
    for _ in range(count):
        [torch.ones(300_000) for _ in range(8)]  # 1.2 MB each, given back together

def run():
    steps(5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    steps(10)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=run)  # as the engine is one
thread.start()
thread.join()
"""


def faults(heap: str) -> int:
    done = subprocess.run([sys.executable, "-c", STEPS, heap], capture_output=True, check=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_was_freed_is_not_faulted_in_again() -> None:
    assert faults("kept") < 100
    assert faults("as it is") > 1000
