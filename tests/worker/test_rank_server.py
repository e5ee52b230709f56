"""A real worker of two ranks over HTTP: the tokens of one process, a new plan of experts, and the end of a rank."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import torch

from m3_fakes.http import wait_until
from m3_fakes.tiny_run import BLOCK, generate
from m3_operator.experts.reading import read_experts
from m3_worker.config import TinySettings
from m3_worker.model.checkpoint import load_model
from m3_worker.model.config import ModelConfig
from m3_worker.tiny import write_checkpoint

PROMPT = [(place * 37 + 11) % 251 for place in range(50)]
LEARNED = [[2, 0, 1, 3, 4, 2], [4, 4, 0, 1, 2, 3]]
PLAN = [[4, 3, 2, 1, 0, 0], [0, 1, 2, 3, 4, 1]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny") / "tiny"
    shape = {"layers": 3, "hidden": 32, "heads": 4, "experts": 5, "block": BLOCK, "topk": 2, "context": 1024}
    write_checkpoint(TinySettings(directory=directory, seed=3, vision=False, **shape))
    return directory


@pytest.fixture
def worker(checkpoint: Path, tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", httpx.Client]]:
    """Two ranks of one node, each a process. They begin with a plan from a file."""
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"epoch": 2, "layers": LEARNED}))
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        meeting = str(listener.getsockname()[1])
    command = [str(Path(sys.executable).with_name("m3-worker")), f"--model={checkpoint}", "--port=0", "--device=cpu"]
    environment = {**os.environ, "M3_GPUS_PER_NODE": "2", "MASTER_PORT": meeting}
    with subprocess.Popen(
        [*command, "--cache-tokens=1024", "--dtype=float32", f"--expert-plan={file}"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if "ready: serving" in line:
                    break
            address = re.search(r"http://[\d.]+:\d+", "".join(lines))
            assert address is not None, "".join(lines)
            with httpx.Client(base_url=address[0], timeout=60) as client:
                yield process, client
        finally:
            process.kill()


@pytest.mark.timeout(300)
def test_two_ranks_serve_as_one_until_one_of_them_is_killed(
    worker: tuple["subprocess.Popen[str]", httpx.Client], checkpoint: Path
) -> None:
    process, client = worker
    torch.set_num_threads(1)
    whole = load_model(checkpoint, ModelConfig.load(checkpoint), torch.float32, "cpu", lambda read, needed: None)
    expected = generate(whole, PROMPT)
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True}

    def answer() -> list[int]:
        answered = client.post("/v1/completions", json={**body, "return_token_ids": True}).json()
        token_ids: list[int] = answered["choices"][0]["token_ids"]
        return token_ids

    assert answer() == expected
    held = client.get("/internal/experts").json()
    assert (held["epoch"], held["ranks"], held["slots"], held["layers"]) == (2, 2, 6, LEARNED)
    warm_up_tokens = 8
    assert [sum(layer) for layer in held["tokens"]] == [(warm_up_tokens + len(PROMPT) + 11) * 2] * 2

    assert read_experts(held, nodes=1).plan.as_json() == {"epoch": 2, "layers": LEARNED}  # the operator's reading

    taken = client.put("/internal/expert-plan", json={"epoch": 3, "layers": PLAN})
    assert (taken.status_code, taken.json()) == (200, {"epoch": 3})
    assert client.get("/internal/experts").json()["layers"] == PLAN
    client.delete("/internal/prefix-cache")
    assert answer() == expected
    late = client.put("/internal/expert-plan", json={"epoch": 2, "layers": PLAN[::-1]})
    assert (late.status_code, late.json()["error"]["param"]) == (409, "epoch")
    wrong = client.put("/internal/expert-plan", json={"epoch": 4, "layers": [[0] * 6, PLAN[1]]})
    assert (wrong.status_code, wrong.json()["error"]["message"]) == (
        400,
        "layers[0] has no slot for expert 1: every expert needs one",
    )

    os.kill(_child(process.pid), signal.SIGKILL)
    wait_until(lambda: client.get("/health").status_code == 503)
    health = client.get("/health").json()
    assert health["status"] == "failed"
    assert "rank 1 (process" in health["reason"]
    assert process.wait(30) == 1


def _child(pid: int) -> int:
    """The one process that this one started."""
    children = Path(f"/proc/{pid}/task").glob("*/children")
    (child,) = {int(word) for path in children for word in path.read_text().split()}
    return child
