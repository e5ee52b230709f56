"""`m3 up` with real processes: a router, workers with a tiny M3, and everything that can end them."""

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

M3 = Path(sys.executable).parent / "m3"
EXAMPLES = Path(str(files("m3_operator.examples")))
PATIENCE_SECONDS = 60

ONE_WORKER = """
apiVersion: serving.m3.dev/v1alpha1
kind: M3Deployment
metadata: {name: one}
spec:
  model: {name: M3-one, source: {tiny: {layers: 2}}}
  engine: {cacheTokens: 4096, maxConcurrent: 4}
  parallelism: {gpusPerNode: 0}
  drain: {timeoutSeconds: 5}
"""

# One after the other in one process: they share checkpoints, and each takes all cores.
pytestmark = pytest.mark.xdist_group("m3 up")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("m3-up") / "state"


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("m3-up-file") / "one.yaml"
    file.write_text(ONE_WORKER)
    return file


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Running:
    """One `m3 up` whose output, both streams of it, is read line by line."""

    def __init__(self, process: subprocess.Popen[str], state: Path) -> None:
        self.process = process
        self.state = state
        self.lines: list[str] = []

    def until(self, pattern: str) -> re.Match[str]:
        """Read on to the first line that matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.search(pattern, line):
                return match
        raise AssertionError(f"m3 up ended without {pattern!r}:\n{''.join(self.lines)}")

    def rest(self) -> str:
        """Everything that is still to come, up to its end."""
        out, _ = self.process.communicate(timeout=PATIENCE_SECONDS)
        self.lines.append(out)
        return out


@contextmanager
def running(file: Path, port: int, state: Path) -> Iterator[Running]:
    with subprocess.Popen(
        [M3, "up", file, "--port", str(port), "--state-dir", state],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield Running(process, state)
        finally:
            process.kill()


def m3_up(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([M3, "up", *arguments], capture_output=True, text=True, timeout=240, check=False)


def children_of(state: Path) -> dict[int, str]:
    """Processes whose command line names the state directory, but for `m3 up` itself."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    rows = (line.split(maxsplit=1) for line in listed.splitlines() if str(state) in line)
    return {int(pid): command for pid, command in rows if "--state-dir" not in command}


def wait_until_gone(state: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while left := children_of(state):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.05)


def test_check_asks_the_example_and_verifies_tiers_costs_and_ledger(port: int, state: Path) -> None:
    result = m3_up("--check", "--port", str(port), "--state-dir", state)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "tiny-g0-r0: ready after" in result.stderr
    assert "tiny-g1-r0: ready after" in result.stderr
    assert f"URL   http://127.0.0.1:{port}/v1" in result.stdout
    answer = re.search(
        r"context tier standard, service tier standard, worker \S+, cost \$([0-9.]+)$", result.stdout, re.M
    )
    assert answer is not None
    assert float(answer[1]) > 0
    assert "ledger: 2 requests, all settled at these costs" in result.stdout
    assert result.stdout.endswith("check passed\n")
    assert children_of(state) == {}


def test_check_asks_both_models_of_two_deployments_behind_one_router(port: int, state: Path) -> None:
    result = m3_up(EXAMPLES / "two-deployments.yaml", "--check", "--port", str(port), "--state-dir", state)

    assert result.returncode == 0, result.stdout + result.stderr
    for model in ("M3-blue", "M3-green"):
        assert re.search(rf"^{model}: ", result.stdout, re.MULTILINE)
        assert re.search(rf"^{model}, streamed in \d+ events: ", result.stdout, re.MULTILINE)
    assert "ledger: 4 requests, all settled at these costs" in result.stdout
    assert children_of(state) == {}


def test_the_curl_line_works_a_killed_worker_comes_back_and_sigterm_ends_everything(
    port: int, state: Path, one_worker: Path
) -> None:
    with running(one_worker, port, state) as m3:
        curl = m3.until("^curl .*").group(0)
        if shutil.which("curl") is not None:
            answered = subprocess.run(
                ["bash", "-c", f"{curl} --silent --show-error"], capture_output=True, text=True, check=True, timeout=60
            )
            assert json.loads(answered.stdout)["usage"]["completion_tokens"] > 0
        key = re.search("Bearer ([^']+)", curl)
        assert key is not None

        (worker,) = (pid for pid, command in children_of(state).items() if "m3-worker" in command)
        os.kill(worker, signal.SIGKILL)
        m3.until("one-g0-r0: it was killed by SIGKILL; starting again in 0.5 s")
        m3.until(r"one-g0-r0: starting again \(restart 1\)")
        m3.until("one-g0-r0: ready after")
        assert status_of_a_chat(port, key[1]) == 200

        m3.process.send_signal(signal.SIGTERM)
        stopping = m3.rest()

        assert m3.process.returncode == 0
        assert stopping.index("one-router: stopped") < stopping.index("one-g0-r0: stopping")
        assert stopping.endswith("everything has stopped\n")
        assert children_of(state) == {}


def status_of_a_chat(port: int, key: str) -> int:
    """The status once the router has seen that its worker is back (its probes come once a second)."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    body = {"model": "M3-one", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    with httpx.Client(trust_env=False, timeout=PATIENCE_SECONDS) as client:
        while True:
            url, headers = f"http://127.0.0.1:{port}/v1/chat/completions", {"authorization": f"Bearer {key}"}
            status = client.post(url, json=body, headers=headers).status_code
            if status == 200 or time.monotonic() > deadline:
                return status
            time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to the life of its parent")
def test_nothing_outlives_m3_up_when_it_is_killed(port: int, state: Path, one_worker: Path) -> None:
    with running(one_worker, port, state) as m3:
        m3.until("URL")
        assert len(children_of(state)) == 2

        m3.process.kill()

        wait_until_gone(state)


def test_ctrl_c_in_a_terminal_stops_everything_also_while_it_starts(port: int, state: Path, one_worker: Path) -> None:
    terminal, inside = pty.openpty()
    with subprocess.Popen(
        [M3, "up", one_worker, "--port", str(port), "--state-dir", state],
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
        preexec_fn=make_controlling_terminal,  # noqa: PLW1509 (no threads here)
    ) as m3:
        os.close(inside)
        seen = read_until(terminal, "one-g0-r0 .*starting")
        os.write(terminal, b"\x03")
        seen += read_until(terminal, "everything has stopped")

        assert m3.wait(PATIENCE_SECONDS) == 0
    os.close(terminal)
    assert "process" in seen
    assert "Traceback" not in seen
    assert children_of(state) == {}


def make_controlling_terminal() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as a terminal's shell has it; whoever runs the tests may ignore it
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def read_until(terminal: int, pattern: str) -> str:
    seen = ""
    while not re.search(pattern, seen):
        seen += os.read(terminal, 4096).decode(errors="replace")
    return seen


def test_a_worker_that_cannot_start_shows_its_last_lines_and_ends_everything(port: int, tmp_path: Path) -> None:
    file, state = tmp_path / "bad.yaml", tmp_path / "state"
    empty = tmp_path / "empty"
    empty.mkdir()
    file.write_text(ONE_WORKER.replace("{tiny: {layers: 2}}", f"{{hostPath: {{path: {empty}}}}}"))

    result = m3_up(file, "--port", str(port), "--state-dir", state)

    assert result.returncode == 1
    assert "one-g0-r0: it exited with status" in result.stderr
    assert re.search(r"^  \| .*\.json: no such file", result.stderr, re.MULTILINE)
    assert result.stderr.splitlines()[-1].startswith("m3: one-g0-r0 did not start: it exited with status")
    assert children_of(state) == {}


def test_a_taken_port_is_named_together_with_the_flag(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]

        result = m3_up("--port", str(taken), "--state-dir", tmp_path / "state")

    assert result.returncode == 1
    assert result.stderr == f"m3: port {taken} is taken by another process; name another with --port\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML: "),
        ("apiVersion: v1\nkind: Secret\n", "document 1: v1 Secret is not supported: only M3Deployment and M3Router of"),
        (ONE_WORKER.replace("gpusPerNode: 0", "gpusPerNode: 8, tensor: 3"), "parallelism.tensor must divide"),
        (ONE_WORKER.replace("gpusPerNode: 0", "gpusPerNode: 8"), "are 8 ranks, and `m3 up` runs one"),
    ],
    ids=["not YAML", "another kind", "a rule of the resource", "more than one machine"],
)
def test_a_bad_file_is_one_line_and_nothing_starts(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)

    result = m3_up(file, "--state-dir", tmp_path / "state")

    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "state").exists()
