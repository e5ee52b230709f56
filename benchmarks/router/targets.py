"""What is compared: how each of them is started in front of the same engines.

A target is a function from where it shall listen and what stands behind it (`Place`) to the command that starts it.
Peers run with their defaults but for what the comparison needs: addresses, policy, no log of requests, room for 512
streams. m3-router runs with all it has: keys and plans with quotas, prices, lanes, affinity, journal on disk, Redis,
metrics, and one line of log per request.
"""

import hashlib
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rig import Command, UnavailableError, find, free_port

KEY = "bench-key"


@dataclass(frozen=True)
class Place:
    """Where a target stands. `directory` is its own; `compiled` and `peers` say where to find what is to be run."""

    port: int
    engines: tuple[int, ...]
    directory: Path
    compiled: str = ""
    peers: Path | UnavailableError | None = None
    redis_url: str = ""
    patience_seconds: int = 600  # with an engine that says nothing
    admin_port: int = field(default_factory=free_port)


@dataclass(frozen=True)
class Target:
    """One of those that are compared."""

    name: str
    title: str
    command: Callable[[Place], Command]


NGINX = """
daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr error;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_max_body_size 0; client_body_buffer_size 64m; tcp_nodelay on; keepalive_requests 1000000000;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  upstream engines {{ least_conn; {servers} keepalive 1024; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_read_timeout {patience}s;
    }}
  }}
}}
"""

M3_ROUTER = """
listen: 127.0.0.1:{port}
admin: 127.0.0.1:{admin}
auth:
  plans:
    bench:
      tokensPerDay: 1000000000000000
      tokensPerMinute: 1000000000000000
      requestsPerMinute: 1000000000000
      concurrentRequests: 100000
      budgetUsd: "900000000"
      serviceTiers: [standard, priority]
  tenants: [{{name: bench, plan: bench}}]
  keys: [{{tenant: bench, sha256: {digest}}}]
lanes: {{longPrefillsPerWorker: 16}}
limits: {{firstByteSeconds: {patience}, idleSeconds: {patience}}}
ledger: {{directory: "{directory}/ledger"}}
{redis}
pools:
  - name: mock
    models: [mock]
    tokensInFlight: 1000000000
    workers: [{workers}]
"""


def nginx(place: Place) -> Command:
    """A plain reverse proxy: what relaying alone costs."""
    servers = " ".join(f"server 127.0.0.1:{port};" for port in place.engines)
    config = place.directory / "nginx.conf"
    config.write_text(
        NGINX.format(directory=place.directory, servers=servers, port=place.port, patience=place.patience_seconds)
    )
    arguments = [find("nginx", "nginx-light"), "-c", str(config), "-p", str(place.directory)]
    return Command(arguments, drain_signal=signal.SIGQUIT)


def m3_router(place: Place) -> Command:
    """Ours."""
    (place.directory / "ledger").mkdir(exist_ok=True)
    config = place.directory / "m3-router.yaml"
    config.write_text(
        M3_ROUTER.format(
            port=place.port,
            admin=place.admin_port,
            digest=hashlib.sha256(KEY.encode()).hexdigest(),
            directory=place.directory,
            redis=f"redis: {{url: '{place.redis_url}'}}" if place.redis_url else "",
            patience=place.patience_seconds,
            workers=", ".join(f"http://127.0.0.1:{port}" for port in place.engines),
        )
    )
    arguments = [sys.executable, "-m", "m3_router.server", "--log-level", "warning", "--config", str(config)]
    return Command(arguments, {"PYTHONPATH": place.compiled}, ready_path="/readyz", ready_port=place.admin_port)


def vllm_router(place: Place, policy: str) -> Command:
    """vLLM's router."""
    return _peer(place, "vllm-router", f"--max-concurrent-requests 4096 --policy {policy}")


def smg(place: Place, policy: str) -> Command:
    """SMG, the successor of SGLang's router."""
    return _peer(place, "smg launch", f"--policy {policy}")


def _peer(place: Place, program: str, arguments: str) -> Command:
    if not isinstance(place.peers, Path):
        raise place.peers or UnavailableError("it is not installed")
    urls = " ".join(f"http://127.0.0.1:{port}" for port in place.engines)
    line = (
        f"{place.peers}/bin/{program} --host 127.0.0.1 --port {place.port} --prometheus-host 127.0.0.1 "
        f"--prometheus-port {place.admin_port} --log-level error --request-timeout-secs {place.patience_seconds} "
        f"{arguments} --worker-urls {urls}"
    )
    return Command(shlex.split(line), settle_seconds=4)


TARGETS = (
    Target("nginx", "nginx", nginx),
    Target("vllm-rr", "vLLM Router, round robin", lambda place: vllm_router(place, "round_robin")),
    Target("vllm-cache", "vLLM Router, cache-aware", lambda place: vllm_router(place, "cache_aware")),
    Target("smg-rr", "SMG, round robin", lambda place: smg(place, "round_robin")),
    Target("smg-cache", "SMG, cache-aware", lambda place: smg(place, "cache_aware")),
    Target("m3-router", "m3-router", m3_router),
)
