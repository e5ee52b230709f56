"""Removing a real cluster without a trace, also when the process that started it died.

Owns the register of running clusters in REGISTER: for each a lock, which its owner holds as long as it lives, and a
record of what there is to remove. A record whose lock is free belongs to a dead owner. Mounts need no removal: they
lie in the mount namespaces of the nodes and vanish with the last process there.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from m3_testcluster.cgroups import find_cgroups, processes_of, remove_cgroup
from m3_testcluster.network import FIRST_SUBNET, SUBNETS, is_subnet_free

REGISTER = Path("/run/m3serve-test-clusters")
NAMESPACES = Path("/run/netns")


class NotRemovedError(Exception):
    """Something of a cluster is still there; the message names it."""


@dataclass(frozen=True)
class Claim:
    """What a cluster owns on this machine: everything named with `prefix`, its /16 and its directory."""

    prefix: str
    subnet: int
    directory: str

    @property
    def record(self) -> Path:
        """The file that says that this is there."""
        return REGISTER / f"{self.subnet}.json"

    def namespaces(self) -> list[Path]:
        """The network namespaces that exist."""
        return sorted(NAMESPACES.glob(f"{self.prefix}-*"))

    def cgroups(self) -> list[Path]:
        """The control groups that exist, children first."""
        return find_cgroups(f"{self.prefix}-*")


@contextmanager
def claim(directory: Path) -> Iterator[Claim]:
    """Takes a free /16 for a cluster with its files in `directory`; removes everything of it when the block ends.

    A watchdog process does the same if this process dies. Removes first what dead owners left behind.
    """
    reap()
    lock, subnet = _take_subnet()
    with lock:
        mine = Claim(f"m3t{os.getpid()}", subnet, str(directory))
        mine.record.write_text(json.dumps(asdict(mine)))
        watchdog = subprocess.Popen(
            [sys.executable, "-m", __name__, str(mine.record)],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
            start_new_session=True,
        )
        try:
            yield mine
        finally:
            # Where this is interrupted the watchdog lives on, and does it when this process ends.
            remove(mine)
            watchdog.kill()
            watchdog.communicate()


def reap() -> None:
    """Removes the clusters whose owners have died."""
    REGISTER.mkdir(mode=0o700, exist_ok=True)
    for record in sorted(REGISTER.glob("*.json")):
        with record.with_suffix(".lock").open("w") as lock:
            if _is_taken(lock.fileno(), blocking=False) and record.exists():
                remove(Claim(**json.loads(record.read_text())))


def watch(record: Path) -> None:
    """The watchdog's life: waits until its standard input ends, which it does when its parent dies, and removes."""
    sys.stdin.buffer.read()
    with record.with_suffix(".lock").open("w") as lock:
        _is_taken(lock.fileno(), blocking=True)
        if record.exists():
            remove(Claim(**json.loads(record.read_text())))


def remove(mine: Claim, timeout_seconds: float = 20) -> None:
    """Kills every process of the cluster and removes links, namespaces, control groups, files and the record.

    Can be called again after it failed. Raises NotRemovedError.
    """
    deadline = time.monotonic() + timeout_seconds
    while pids := _processes(mine):
        for pid in pids:
            _kill(pid)
        if time.monotonic() > deadline:
            raise NotRemovedError(f"processes {sorted(pids)} of test cluster {mine.prefix} do not die")
        time.sleep(0.05)
    subprocess.run(["ip", "link", "delete", f"{mine.prefix}-h"], capture_output=True, check=False)
    for namespace in mine.namespaces():
        subprocess.run(["ip", "netns", "delete", namespace.name], check=True)
    while left := [group for group in mine.cgroups() if not remove_cgroup(group)]:
        if time.monotonic() > deadline:
            raise NotRemovedError(f"control groups of test cluster {mine.prefix} are busy: {left[0]}")
        time.sleep(0.05)
    shutil.rmtree(mine.directory, ignore_errors=True)
    mine.record.unlink(missing_ok=True)


def _take_subnet() -> tuple[TextIO, int]:
    """The first /16 that no other cluster and no route of this machine uses, with the open file that locks it."""
    for subnet in range(FIRST_SUBNET, FIRST_SUBNET + SUBNETS):
        lock = (REGISTER / f"{subnet}.lock").open("w")
        if _is_taken(lock.fileno(), blocking=False) and is_subnet_free(subnet):
            return lock, subnet
        lock.close()
    raise NotRemovedError(f"all of 10.{FIRST_SUBNET}.0.0/16 to 10.{FIRST_SUBNET + SUBNETS - 1}.0.0/16 are in use here")


def _is_taken(descriptor: int, *, blocking: bool) -> bool:
    """Takes the lock; False where another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _processes(mine: Claim) -> set[int]:
    """Every process in the cluster's network namespaces (daemons, shims) or control groups (containers)."""
    inodes = {path.stat().st_ino for path in mine.namespaces()}
    pids = {pid for pid in _all_pids() if _network_namespace(pid) in inodes}
    for group in mine.cgroups():
        pids |= processes_of(group)
    return pids


def _all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _network_namespace(pid: int) -> int | None:
    """The inode of the process's network namespace; None where the process is gone or already a zombie."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return None


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
