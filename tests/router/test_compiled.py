"""The compiled hot path behaves as the interpreted one: the same tests pass with it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What passes through the compiled modules from end to end and what works on bytes, bits and counts. Random searches
# for properties of decisions (fair_queue, placement, prices, quotas) say nothing about how those are compiled; the
# relay's tests are served by them, too.
SAME_TESTS = (
    "affinity",
    "alike",
    "client_end",
    "lanes",
    "lanes_holding",
    "ledger",
    "metrics",
    "prefix",
    "relay",
    "relay_failures",
    "relay_holding",
    "request",
    "sdk",
    "spend",
    "usage",
    "worker_end",
)


@pytest.fixture(scope="module")
def compiled() -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (cc) on this machine")
    built = subprocess.run([ROOT / "scripts" / "compile-router"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return Path(built.stdout.strip())


def test_no_compiled_module_has_a_record_that_msgspec_reads() -> None:
    """The compiler does not keep the types of such a record's fields, and what is read by them is refused silently."""
    modules = re.findall(r'^        "([a-z_/]+)",$', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert "relay/relay" in modules
    sources = {name: (ROOT / "router" / "m3_router" / f"{name}.py").read_text() for name in modules}
    assert [name for name, source in sources.items() if "msgspec.Struct" in source] == []


@pytest.mark.timeout(600)
def test_the_compiled_hot_path_passes_the_same_tests(compiled: Path) -> None:
    # The packages of an editable install are found through a finder that PYTHONPATH outranks.
    environment = {**os.environ, "PYTHONPATH": str(compiled)}
    which = "from m3_router import router; from m3_router.relay import relay; print(relay.__file__, router.HOT_PATH)"
    found = subprocess.run([sys.executable, "-c", which], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == f"{next((compiled / 'm3_router' / 'relay').glob('relay.*.so'))} compiled\n"
    files = [f"tests/router/test_{name}.py" for name in SAME_TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:]
