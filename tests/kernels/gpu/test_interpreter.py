"""What is below `interpreted/` passes in Triton's interpreter; `make check-kernels` also runs what is marked `long`.

In two processes of their own, one for each core of a small machine: attention takes as long as the rest.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "interpreted"
# One thread: NumPy's matrix products are so small that more of them wait for each other, up to ten times longer.
ENVIRONMENT = {"TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.timeout(900)  # half a minute, unless many share the machine
@pytest.mark.parametrize("which", ["attention", "not attention"])
def test_kernels_give_what_the_reference_gives(which: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-q", "--tb=short"]
    files = sorted(file for file in HERE.glob("test_*.py") if (file.stem == "test_attention") == (which == "attention"))
    done = subprocess.run(
        [*command, "-m", "not long", *files],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
