"""The worker's process: it listens while it loads, drains when told to end, and its exit code says what happened."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from m3_fakes.http import wait_until
from m3_fakes.worker import fake_model
from m3_worker.config import TinySettings, WorkerSettings
from m3_worker.http_server import listen
from m3_worker.model.config import CheckpointError
from m3_worker.server import WorkerServer
from m3_worker.serving import ServedModel

COMPLETIONS = "/v1/completions"


@asynccontextmanager
async def serving(
    load: Callable[[Callable[[int, int], None]], ServedModel], drain_seconds: float = 30, deadline_seconds: float = 60
) -> AsyncIterator[tuple[WorkerServer, "asyncio.Task[int]", httpx.AsyncClient]]:
    settings = WorkerSettings(model=Path("fake"), drain_seconds=drain_seconds, step_deadline_seconds=deadline_seconds)
    listener = listen("127.0.0.1", 0)
    server = WorkerServer(settings, load)
    process = asyncio.create_task(server.run(listener))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        try:
            yield server, process, client
        finally:
            server.request_stop()
            await process


async def until_found(client: httpx.AsyncClient, path: str, text: str) -> None:
    """Ask again until the answer has the text; each time waits for the server itself."""
    async with asyncio.timeout(10):
        while text not in (await client.get(path)).text:
            pass


async def test_the_server_answers_while_it_loads_and_shows_how_far_it_is() -> None:
    go_on = threading.Event()
    model, _ = fake_model()

    def load(progress: Callable[[int, int], None]) -> ServedModel:
        progress(1000, 4000)
        go_on.wait(10)
        return model

    async with serving(load) as (_, _, client):
        health = await client.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        await until_found(client, "/metrics", "m3_worker_load_progress_read_bytes 1000.0")
        go_on.set()
        await until_found(client, "/health", '"ok"')
        answer = await client.post(COMPLETIONS, json={"model": "fake", "prompt": "x", "max_tokens": 2})
        assert answer.status_code == 200


async def test_a_checkpoint_that_cannot_be_served_ends_the_process_with_1_and_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(progress: Callable[[int, int], None]) -> ServedModel:
        raise CheckpointError("config.json: model_type is 'llama': must be minimax_m3_vl")

    async with serving(load) as (_, process, _):
        assert await process == 1
    assert capsys.readouterr().err == "m3-worker: config.json: model_type is 'llama': must be minimax_m3_vl\n"


async def test_a_signal_while_loading_ends_at_once_with_0() -> None:
    go_on = threading.Event()

    def load(progress: Callable[[int, int], None]) -> ServedModel:
        go_on.wait(30)
        raise CheckpointError("too late to matter")

    async with serving(load) as (server, process, client):
        await client.get("/health")
        server.request_stop()
        async with asyncio.timeout(5):
            assert await process == 0
    go_on.set()


async def test_an_engine_that_hangs_is_unhealthy_with_a_reason_and_ends_the_process_with_1() -> None:
    model, runner = fake_model()
    runner.gate = threading.Semaphore(0)
    async with serving(lambda progress: model, deadline_seconds=0.1) as (_, process, client):
        await until_found(client, "/health", '"ok"')
        answer = await client.post(COMPLETIONS, json={"model": "fake", "prompt": "x", "max_tokens": 2})
        assert answer.status_code == 500
        assert "the engine hangs" in answer.json()["error"]["message"]
        health = await client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        assert "no step was finished for" in health.json()["reason"]
        assert await process == 1
        runner.gate.release(100)


async def test_a_drain_lets_requests_finish_and_takes_no_new_ones() -> None:
    model, runner = fake_model()
    runner.gate = threading.Semaphore(0)
    async with serving(lambda progress: model) as (server, process, client):
        await until_found(client, "/health", '"ok"')
        body = {"model": "fake", "prompt": "x", "max_tokens": 3, "stream": True}
        async with client.stream("POST", COMPLETIONS, json=body) as response:
            lines = (line async for line in response.aiter_lines() if line)
            runner.gate.release()
            await anext(lines)
            server.request_stop()
            await until_found(client, "/health", '"draining"')
            refused = await client.post(COMPLETIONS, json={**body, "stream": False})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert not process.done()
            runner.gate.release(2)
            assert [line async for line in lines][-1] == "data: [DONE]"
        async with asyncio.timeout(10):
            assert await process == 0


async def test_what_does_not_finish_within_the_drain_gets_an_error_and_the_process_ends() -> None:
    model, runner = fake_model()
    runner.gate = threading.Semaphore(1)
    async with serving(lambda progress: model, drain_seconds=0.05) as (server, process, client):
        await until_found(client, "/health", '"ok"')
        body = {"model": "fake", "prompt": "x", "max_tokens": 3, "stream": True}
        async with client.stream("POST", COMPLETIONS, json=body) as response:
            lines = (line async for line in response.aiter_lines() if line)
            await anext(lines)
            server.request_stop()
            runner.gate.release()
            last = [line async for line in lines][-1]
        assert (
            json.loads(last.removeprefix("data: "))["error"]["message"] == "the engine failed: the engine was stopped"
        )
        runner.gate.release(10)
        assert await process == 0


async def test_a_second_signal_ends_the_drain() -> None:
    model, runner = fake_model()
    runner.gate = threading.Semaphore(0)
    async with serving(lambda progress: model) as (server, process, client):
        await until_found(client, "/health", '"ok"')
        async with client.stream("POST", COMPLETIONS, json={"model": "fake", "prompt": "x", "stream": True}):
            server.request_stop()
            await until_found(client, "/health", '"draining"')
            server.request_stop()
            runner.gate.release(1000)
            async with asyncio.timeout(10):
                assert await process == 0


async def test_a_failed_engine_tells_why_and_ends_the_process_with_1(caplog: pytest.LogCaptureFixture) -> None:
    def fail(batch: object) -> None:
        raise RuntimeError("the device is gone")

    model, runner = fake_model()
    runner.before_step = fail
    async with serving(lambda progress: model) as (_, process, client):
        await until_found(client, "/health", '"ok"')
        answer = await client.post(COMPLETIONS, json={"model": "fake", "prompt": "x", "max_tokens": 2})
        assert answer.status_code == 500
        await until_found(client, "/health", '{"status":"failed","reason":"RuntimeError: the device is gone"}')
        async with asyncio.timeout(10):
            assert await process == 1
    assert "the engine failed (RuntimeError: the device is gone)" in caplog.text


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            listen("127.0.0.1", port)


# The real process, with a real tiny checkpoint.


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """`m3-worker`; killed in the end if it is still there."""
    command = [str(Path(sys.executable).with_name("m3-worker")), *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}) as started:
        try:
            yield started
        finally:
            started.kill()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from m3_worker.tiny import write_checkpoint

    directory = tmp_path_factory.mktemp("tiny")
    write_checkpoint(TinySettings(directory=directory, layers=2, experts=4, context=512))
    return directory


def test_a_real_worker_serves_and_drains_on_sigterm(checkpoint: Path) -> None:
    with process(f"--model={checkpoint}", "--port=0", "--device=cpu", "--served-model-name=tiny") as worker:
        assert worker.stderr is not None
        url = re.search(r"listening on (http://\S+),", worker.stderr.readline())
        assert url is not None
        with httpx.Client(base_url=url[1], timeout=60) as client:
            assert client.get("/health").json()["status"] in ("loading", "ok")
            wait_until(lambda: client.get("/health").status_code == 200, seconds=90)
            body = {"model": "tiny", "prompt": "hello", "max_tokens": 100, "ignore_eos": True, "stream": True}
            with client.stream("POST", COMPLETIONS, json=body) as response:
                lines = (line for line in response.iter_lines() if line)
                next(lines)
                worker.send_signal(signal.SIGTERM)
                rest = list(lines)
            assert rest[-1] == "data: [DONE]"
            assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert worker.wait(30) == 0


def test_a_real_worker_refuses_a_checkpoint_it_lacks_something_for(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["sparse_attention_config"]["sparse_score_type"] = "mean"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with process(f"--model={tmp_path}", "--port=0", "--log-level=error") as worker:
        _, errors = worker.communicate(timeout=90)
        assert worker.returncode == 1
    assert errors.startswith("m3-worker: ")
    assert 'sparse_score_type is "mean": only "max" is supported' in errors
    assert errors.count("\n") == 1


def test_a_simulation_of_more_than_one_rank_is_refused() -> None:
    with process("--simulate", "--port=0", M3_NODES="2", M3_GPUS_PER_NODE="8") as worker:
        _, errors = worker.communicate(timeout=60)
        assert worker.returncode == 1
    assert errors == "m3-worker: --simulate computes on one rank, not on 16 (M3_NODES x M3_GPUS_PER_NODE)\n"
