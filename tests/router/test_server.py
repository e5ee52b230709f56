"""The m3-router process: start-up, faults, and the end by SIGTERM."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import httpx
import pytest

from m3_mock import MockEngine
from m3_router.server import main

CONFIG = """
listen: 127.0.0.1:0
admin: 127.0.0.1:0
auth: none
pools: [{{name: mock, models: [mock], workers: ["{url}"]}}]
"""


async def test_the_process_serves_logs_and_ends_by_sigterm(engine: MockEngine, tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text(CONFIG.format(url=engine.url))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "m3_router.server", "--config", str(file), stdout=PIPE, stderr=PIPE
    )
    assert process.stderr is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            listening = json.loads(await process.stderr.readline())
            while b"is ready" not in await process.stderr.readline():
                pass
            address = listening["message"].split()[2].rstrip(",")
            async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as client:
                answer = await client.post("/v1/completions", json={"model": "mock", "prompt": [1, 2]})
                assert answer.status_code == 200
            process.send_signal(signal.SIGTERM)
            (line,) = (await process.stdout.read()).splitlines()
            assert await process.wait() == 0
        assert json.loads(line)["cost_nanousd"] == 2 * 300 + 3 * 1200
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def test_a_bad_configuration_is_named_and_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "router.yaml"
    file.write_text("auth: none\npools: []\n")
    with pytest.raises(SystemExit) as ended:
        main(["--config", str(file)])
    assert ended.value.code == 2
    assert f"m3-router: {file}: pools: needs at least one item" in capsys.readouterr().err


def test_an_address_in_use_is_named_and_ends_with_1(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        file = tmp_path / "router.yaml"
        file.write_text(
            CONFIG.format(url="http://127.0.0.1:1").replace("listen: 127.0.0.1:0", f"listen: 127.0.0.1:{port}")
        )
        command = [sys.executable, "-m", "m3_router.server", "--config", str(file)]
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"m3-router: cannot listen on 127.0.0.1:{port}" in done.stderr.decode()
