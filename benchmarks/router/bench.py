"""What the router costs: the same load straight at mock engines, through nginx, and through m3-router.

    python benchmarks/router/bench.py [--seconds 3] [--repetitions 5] [--output benchmarks/router/RESULTS.md]

The target alone runs on one CPU; two mock engines and the load driver share the other. All three targets stay up and
take turns within each repetition, so that a busy neighbour hurts them alike; of each the best repetition counts. CPU
time is read from /proc for the target's whole process tree. Everything listens on loopback, on ports that the system
chooses, and is stopped at the end. Needs cc and nginx.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
TARGET_CPU, LOAD_CPU = "0", "1"
TARGETS = ("direct", "nginx", "m3-router")


@dataclass(frozen=True)
class Scenario:
    """One kind of load. `engines`: whether they answer at once or take their time, as a stream does."""

    name: str
    title: str
    arguments: tuple[str, ...]
    engines: str = "fast"


SCENARIOS = (
    Scenario("one", "1 KiB prompt, JSON answer, 1 connection", ("-c", "1", "-b", "1024")),
    Scenario("many", "1 KiB prompt, JSON answer, 32 connections", ("-c", "32", "-b", "1024")),
    Scenario("long", "256 KiB prompt, 4 connections", ("-c", "4", "-b", "262144")),
    Scenario("huge", "2 MiB prompt, 2 connections", ("-c", "2", "-b", "2097152")),
    Scenario("stream32", "32 streams, each 100 events/s", ("-c", "32", "-b", "1024", "-S", "-m", "100"), "slow"),
    Scenario("stream512", "512 streams, each 100 events/s", ("-c", "512", "-b", "1024", "-S", "-m", "100"), "slow"),
)

NGINX_CONFIG = """
daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr error;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_max_body_size 0; client_body_buffer_size 4m; tcp_nodelay on; keepalive_requests 1000000000;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  upstream engines {{ least_conn; {servers} keepalive 1024; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""
ROUTER_CONFIG = """
listen: 127.0.0.1:{port}
admin: 127.0.0.1:{admin}
auth: none
pools:
  - name: mock
    models: [mock]
    tokensInFlight: 1000000000
    workers: [{workers}]
"""


def say(line: str) -> None:
    """One line of progress."""
    print(f"bench-router: {line}", flush=True)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def find(program: str, package: str) -> str:
    """The path of a program; exits with the line that installs it if it is not there."""
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        sys.exit(f"bench-router: {program} is not installed; on Debian and Ubuntu: apt-get install {package}")
    return path


def compile_program(name: str, directory: Path) -> str:
    """Compile one of the C programs beside this file."""
    target = directory / name
    command = [find("cc", "gcc libc6-dev"), "-O2", "-o", str(target), str(HERE / f"{name}.c")]
    subprocess.run(command, check=True)
    return str(target)


@contextlib.contextmanager
def running(command: list[str], cpu: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process pinned to one CPU, ended with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(["taskset", "-c", cpu, *command], stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_up(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for `GET /health` to answer 200."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        if process.poll() is not None:
            sys.exit(f"bench-router: {process.args} ended: {log.read_text(errors='replace')[-2000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    sys.exit(f"bench-router: nothing answers on port {port}: {log.read_text(errors='replace')[-2000:]}")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    own = (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(cpu_seconds(int(child)) for child in children)


def measure(driver: str, scenario: Scenario, port: int, pid: int | None, seconds: float) -> dict[str, Any]:
    """One run of the load driver against one target."""
    before = cpu_seconds(pid) if pid else 0.0
    command = ["taskset", "-c", LOAD_CPU, driver, "-p", str(port), "-d", str(seconds), *scenario.arguments]
    done = subprocess.run(command, capture_output=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout)
    used = (cpu_seconds(pid) if pid else 0.0) - before
    row["cpu_us_per_request"] = used / max(row["requests"], 1) * 1e6
    row["cpu_us_per_event"] = used / max(row["events_per_second"] * row["seconds"], 1) * 1e6
    if row["errors"]:
        sys.exit(f"bench-router: {scenario.name} on port {port} had errors: {row}")
    return row


def best(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The best value of each figure over all repetitions."""
    return {
        "requests_per_second": max(row["requests_per_second"] for row in rows),
        "events_per_second": max(row["events_per_second"] for row in rows),
        "p50_us": min(row["latency_us"]["p50"] for row in rows),
        "p99_us": min(row["latency_us"]["p99"] for row in rows),
        "first_event_us": min(row["first_event_us"]["p50"] for row in rows),
        "cpu_us_per_request": min(row["cpu_us_per_request"] for row in rows),
        "cpu_us_per_event": min(row["cpu_us_per_event"] for row in rows),
    }


@contextlib.contextmanager
def targets(engine: str, engines: str, directory: Path) -> Iterator[dict[str, tuple[int, int | None]]]:
    """Mock engines, nginx and the router; port and process id of each target."""
    pace = ["-t", "2000", "-i", "10000"] if engines == "slow" else []
    with contextlib.ExitStack() as stack:
        ports = [free_port(), free_port()]
        for port in ports:
            log = directory / f"engine-{port}.log"
            process = stack.enter_context(running([engine, "-p", str(port), *pace], LOAD_CPU, log))
            wait_until_up(port, process, log)
        found: dict[str, tuple[int, int | None]] = {"direct": (ports[0], None)}

        nginx_port = free_port()
        servers = " ".join(f"server 127.0.0.1:{port};" for port in ports)
        config = directory / "nginx.conf"
        config.write_text(NGINX_CONFIG.format(directory=directory, servers=servers, port=nginx_port))
        log = directory / "nginx.log"
        process = stack.enter_context(running([find("nginx", "nginx-light"), "-c", str(config)], TARGET_CPU, log))
        wait_until_up(nginx_port, process, log)
        found["nginx"] = (nginx_port, process.pid)

        router_port = free_port()
        workers = ", ".join(f"http://127.0.0.1:{port}" for port in ports)
        config = directory / "router.yaml"
        config.write_text(ROUTER_CONFIG.format(port=router_port, admin=free_port(), workers=workers))
        log = directory / "router.log"
        command = [sys.executable, "-m", "m3_router.server", "--config", str(config)]
        process = stack.enter_context(running(command, TARGET_CPU, log))
        wait_until_up(router_port, process, log)
        found["m3-router"] = (router_port, process.pid)
        yield found


def run(seconds: float, repetitions: int, names: list[str]) -> dict[tuple[str, str], dict[str, float]]:
    """All scenarios against all targets; the best of each."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="m3-bench-router-") as name:
        directory = Path(name)
        say("compiling the mock engine and the load driver")
        engine, driver = compile_program("mock_engine", directory), compile_program("load_driver", directory)
        for engines in ("fast", "slow"):
            chosen = [one for one in SCENARIOS if one.engines == engines and one.name in names]
            if not chosen:
                continue
            say(f"starting {engines} engines, nginx and m3-router")
            with targets(engine, engines, directory) as found:
                for target, (port, pid) in found.items():
                    say(f"warming up {target}")
                    measure(driver, SCENARIOS[1], port, pid, 1.0)
                for repetition in range(1, repetitions + 1):
                    for scenario in chosen:
                        for target, (port, pid) in found.items():
                            row = measure(driver, scenario, port, pid, seconds)
                            rows.setdefault((scenario.name, target), []).append(row)
                            say(
                                f"{repetition}/{repetitions} {scenario.name:9} {target:9} "
                                f"{row['requests_per_second']:8.0f} requests/s "
                                f"{row['events_per_second']:8.0f} events/s "
                                f"p50 {row['latency_us']['p50']} us, CPU {row['cpu_us_per_request']:.1f} us/request"
                            )
    return {key: best(several) for key, several in rows.items()}


def compare(
    scenario: Scenario, direct: dict[str, float], nginx: dict[str, float], ours: dict[str, float]
) -> tuple[str, list[str]]:
    """What counts in one scenario: the ratio of the router to nginx, and a cell for each target."""
    if scenario.name == "one":
        added = [target["p50_us"] - direct["p50_us"] for target in (nginx, ours)]
        ratio = f"{added[1] / added[0]:.2f} x added latency" if added[0] > 0 else "-"
        return ratio, [f"{direct['p50_us']:.0f} us", *(f"+{one:.0f} us p50" for one in added)]
    what, unit = ("event", "events") if scenario.engines == "slow" else ("request", "requests")
    cells = [f"{direct[f'{unit}_per_second']:,.0f} {unit}/s"]
    cells += [
        f"{one[f'{unit}_per_second']:,.0f} {unit}/s, {one[f'cpu_us_per_{what}']:.0f} us CPU" for one in (nginx, ours)
    ]
    if scenario.name == "many":
        return f"**{ours['requests_per_second'] / nginx['requests_per_second']:.2f} x requests/s**", cells
    return f"{ours[f'cpu_us_per_{what}'] / nginx[f'cpu_us_per_{what}']:.2f} x CPU per {what}", cells


def report(results: dict[tuple[str, str], dict[str, float]], command: str, load: str) -> str:
    """The table as Markdown: ratios first."""
    lines = [
        "# m3-router against nginx, on one core",
        "",
        "Question: what does a request cost in the router, with prices, lanes, ledger, log and metrics, compared with",
        "nginx that only relays it? Same client, same mock engines, same run.",
        "",
        "| load | of nginx | direct | nginx | m3-router |",
        "| --- | --- | --- | --- | --- |",
    ]
    for scenario in SCENARIOS:
        if (scenario.name, "m3-router") not in results:
            continue
        direct, nginx, ours = (results[scenario.name, target] for target in TARGETS)
        ratio, cells = compare(scenario, direct, nginx, ours)
        lines.append(f"| {scenario.title} | {ratio} | {' | '.join(cells)} |")
    nginx_version = subprocess.run(
        [find("nginx", "nginx-light"), "-v"], capture_output=True, text=True, check=True
    ).stderr
    libraries = ", ".join(f"{name} {version(name)}" for name in ("uvloop", "httptools", "msgspec"))
    lines += [
        "",
        f"- Date: {datetime.datetime.now(tz=datetime.UTC).date()}. Command: `{command}`.",
        f"- Machine: {os.cpu_count()} CPUs ({cpu_model()}), Linux {platform.release()}; load average {load}.",
        f"- Versions: {nginx_version.strip().removeprefix('nginx version: ')}, "
        f"Python {platform.python_version()}, {libraries}.",
        f"- The target alone on CPU {TARGET_CPU}; two mock engines and the load driver on CPU {LOAD_CPU}.",
        "  Of each figure the best of all repetitions.",
        "- What bounds it: the interpreter. Of the router's time per short request about a third is in the kernel",
        "  (two reads, two writes), as in nginx; the rest is Python that parses, prices, places and accounts for it.",
        "  Long prompts cost copies: read in pieces, joined, written.",
        "- What it does not show: real engines, TLS, many tenants, other machines. Ratios carry over better than",
        "  times, and less so from a busy machine: Python loses more to cold caches than nginx does.",
        "",
    ]
    return "\n".join(lines)


def cpu_model() -> str:
    """What the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description="Measure m3-router against nginx.")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS.md")
    parser.add_argument("--scenarios", default=",".join(one.name for one in SCENARIOS), help="which, by comma")
    arguments = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        sys.exit("bench-router: needs two CPUs, one for the target and one for engines and driver")
    find("nginx", "nginx-light")
    find("cc", "gcc libc6-dev")
    find("taskset", "util-linux")
    began = os.getloadavg()[0]
    results = run(arguments.seconds, arguments.repetitions, arguments.scenarios.split(","))
    text = report(results, "make bench-router", f"{began:.1f} before the run")
    arguments.output.write_text(text)
    print(text)
    say(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
