"""The soak in short: `make soak` for five seconds."""

import re
import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parents[2] / "benchmarks/engine/soak.py"


def test_five_seconds_of_random_load_change_no_token_and_leak_no_page() -> None:
    run = subprocess.run(
        [sys.executable, SOAK, "--minutes", "0.08", "--seed", "7"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    table = dict(re.findall(r"^(\w.*?) {2,}(.*)$", run.stdout, re.MULTILINE))
    assert table["faults"] == "0"
    assert int(table["tokens compared"]) > 100
    assert int(table["pages evicted"]) > 0
