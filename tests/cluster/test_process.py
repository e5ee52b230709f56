"""The processes of a test cluster: they die with whoever started them, and say why they did not come up."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m3_testcluster.process import Daemon, ReservedPort, StartError, await_ready
from m3_testcluster.scratch import scratch_directory, sweep


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_process_that_ends_while_starting_shows_the_end_of_its_log(tmp_path: Path) -> None:
    daemon = Daemon("etcd", ["sh", "-c", "echo cannot open the data; exit 3"], tmp_path / "etcd.log")

    with pytest.raises(StartError, match=r"etcd ended with status 3; .*etcd\.log ends:\ncannot open the data"):
        await_ready("etcd", lambda: False, [daemon], timeout_seconds=30)


def test_a_process_that_never_gets_ready_shows_the_end_of_its_log(tmp_path: Path) -> None:
    daemon = Daemon("etcd", ["sh", "-c", "echo waiting for a leader; exec sleep 600"], tmp_path / "etcd.log")
    try:
        await_ready("a first line", lambda: bool(daemon.tail()), [daemon], timeout_seconds=30)
        with pytest.raises(StartError, match=r"store: not ready after 0\.2 s\n--- etcd .*\nwaiting for a leader"):
            await_ready("store", lambda: False, [daemon], timeout_seconds=0.2)
    finally:
        daemon.kill()


def test_kill_ends_the_children_of_a_process_too(tmp_path: Path) -> None:
    daemon = Daemon("parent", ["sh", "-c", "sleep 600 & echo $!; wait"], tmp_path / "log")
    await_ready("child", lambda: bool(daemon.tail()), [daemon], timeout_seconds=30)
    child = int(daemon.tail())

    daemon.kill()
    daemon.kill()

    deadline = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(child)
    assert not daemon.is_running()


def test_a_process_does_not_outlive_a_killed_owner(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from m3_testcluster.process import Daemon\n"
        "print(Daemon('etcd', ['sleep', '600'], Path(sys.argv[1])).pid, flush=True); time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout
        pid = int(owner.stdout.readline())
        deadline = time.monotonic() + 30
        while not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0"):  # until then, nobody is tied to it
            assert time.monotonic() < deadline
            time.sleep(0.02)
        owner.kill()

    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(pid)


def test_a_reserved_port_is_given_to_nobody_else() -> None:
    reserved = ReservedPort("127.0.0.1")
    try:
        others = [ReservedPort("127.0.0.1") for _ in range(20)]
        for other in others:
            other.release()
    finally:
        reserved.release()

    assert reserved.number not in {other.number for other in others}


def test_directories_of_dead_owners_are_swept_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    long_ago = time.time() - 3600
    abandoned, foreign = tmp_path / "m3t-abandoned", tmp_path / "m3t-foreign"
    for directory in (abandoned, foreign):
        directory.mkdir()
    (abandoned / "owner.lock").touch()
    os.utime(abandoned / "owner.lock", (long_ago, long_ago))

    with scratch_directory() as living:
        os.utime(living / "owner.lock", (long_ago, long_ago))
        sweep(living.parent)
        sweep(tmp_path)
        assert living.exists()

    assert not living.exists()
    assert not abandoned.exists()
    assert foreign.exists()
