"""The `openai` npm SDK against a running worker, where node and the package are there."""

import shutil
import subprocess
from pathlib import Path

import pytest

from m3_fakes.worker import running_simulation
from m3_worker.config import WorkerSettings

HERE = Path(__file__).parent / "openai_npm"
SETTINGS = WorkerSettings(simulate=True, simulate_token_seconds=0.001)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.skipif(not (HERE / "node_modules" / "openai").is_dir(), reason="needs the openai package: make npm-sdk")
def test_the_npm_sdk_is_content() -> None:
    with running_simulation(SETTINGS) as (_, url):
        checked = subprocess.run(
            ["node", "check.mjs", f"{url}/v1"], cwd=HERE, capture_output=True, text=True, timeout=120, check=False
        )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("ok: ") == 7
