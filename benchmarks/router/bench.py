"""What the router costs: the same load straight at mock engines, through nginx, and through m3-router.

    python benchmarks/router/bench.py [--seconds 2] [--repetitions 7] [--output benchmarks/router/RESULTS.md]

m3-router is measured as its image ships it, with the hot path compiled, and interpreted as well. The target alone runs
on one CPU; two mock engines and the load driver share the other. All targets stay up and take turns within each
repetition, so that a busy neighbour hurts them alike: ratios are taken within a repetition, and of these the median.
CPU time is read from /proc for the target's whole process tree. Everything listens on loopback, on ports that the
system chooses, and is stopped at the end. Needs cc and nginx.
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
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
TARGET_CPU, LOAD_CPU = "0", "1"
TARGETS = ("direct", "nginx", "m3-router", "interpreted")


Results = dict[tuple[str, str], list[dict[str, Any]]]
"""(scenario, target) -> one row of the load driver for each repetition."""


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
def running(
    command: list[str], cpu: str, log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process pinned to one CPU, ended with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "-c", cpu, *command], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
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


def value(row: dict[str, Any], figure: str) -> float:
    """One figure of one measurement."""
    if figure in ("p50", "p99"):
        return float(row["latency_us"][figure])
    return float(row[figure])


@contextlib.contextmanager
def targets(engine: str, engines: str, compiled: str, directory: Path) -> Iterator[dict[str, tuple[int, int | None]]]:
    """Mock engines, nginx and the router in both forms; port and process id of each target."""
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

        workers = ", ".join(f"http://127.0.0.1:{port}" for port in ports)
        for name, search_path in (("m3-router", compiled), ("interpreted", "")):
            router_port = free_port()
            config = directory / f"{name}.yaml"
            config.write_text(ROUTER_CONFIG.format(port=router_port, admin=free_port(), workers=workers))
            log = directory / f"{name}.log"
            command = [sys.executable, "-m", "m3_router.server", "--config", str(config)]
            environment = {**os.environ, "PYTHONPATH": search_path}
            process = stack.enter_context(running(command, TARGET_CPU, log, environment))
            wait_until_up(router_port, process, log)
            found[name] = (router_port, process.pid)
        yield found


def run(seconds: float, repetitions: int, names: list[str]) -> Results:
    """All scenarios against all targets, each repetition of each."""
    results: Results = {}
    with tempfile.TemporaryDirectory(prefix="m3-bench-router-") as name:
        directory = Path(name)
        say("compiling the mock engine and the load driver")
        engine, driver = compile_program("mock_engine", directory), compile_program("load_driver", directory)
        built = subprocess.run([HERE.parents[1] / "scripts" / "compile-router"], stdout=subprocess.PIPE, check=True)
        compiled = built.stdout.decode().strip()
        for engines in ("fast", "slow"):
            chosen = [one for one in SCENARIOS if one.engines == engines and one.name in names]
            if not chosen:
                continue
            say(f"starting {engines} engines, nginx and m3-router")
            with targets(engine, engines, compiled, directory) as found:
                for target, (port, pid) in found.items():
                    say(f"warming up {target}")
                    measure(driver, SCENARIOS[1], port, pid, 1.0)
                for repetition in range(1, repetitions + 1):
                    for scenario in chosen:
                        for target, (port, pid) in found.items():
                            row = measure(driver, scenario, port, pid, seconds)
                            results.setdefault((scenario.name, target), []).append(row)
                            say(
                                f"{repetition}/{repetitions} {scenario.name:9} {target:11} "
                                f"{row['requests_per_second']:8.0f} requests/s "
                                f"{row['events_per_second']:8.0f} events/s "
                                f"p50 {row['latency_us']['p50']} us, CPU {row['cpu_us_per_request']:.1f} us/request"
                            )
    return results


def middle(results: Results, scenario: Scenario, target: str, figure: str) -> float:
    """The median of a figure over the repetitions."""
    return median(value(row, figure) for row in results[scenario.name, target])


def ratio(results: Results, scenario: Scenario, target: str, figure: str) -> float:
    """The median, over the repetitions, of a target's figure to nginx's in the same repetition."""
    pairs = zip(results[scenario.name, target], results[scenario.name, "nginx"], strict=True)
    return median(value(ours, figure) / max(value(nginx, figure), 1e-9) for ours, nginx in pairs)


def added_latency(results: Results, scenario: Scenario, target: str) -> float:
    """The median of what a target adds to the direct p50 of the same repetition, in microseconds."""
    pairs = zip(results[scenario.name, target], results[scenario.name, "direct"], strict=True)
    return median(value(through, "p50") - value(direct, "p50") for through, direct in pairs)


def compare(results: Results, scenario: Scenario) -> list[str]:
    """The cells of one line: the ratios of both routers to nginx, and the figures of each target."""
    proxies = TARGETS[1:]
    if scenario.name == "one":
        added = {target: added_latency(results, scenario, target) for target in proxies}
        cells = [f"{added[target] / added['nginx']:.2f} x added latency" for target in TARGETS[2:]]
        cells.append(f"{middle(results, scenario, 'direct', 'p50'):.0f} us p50")
        return cells + [f"+{added[target]:.0f} us" for target in proxies]
    what, unit = ("event", "events") if scenario.engines == "slow" else ("request", "requests")
    rate, cost = f"{unit}_per_second", f"cpu_us_per_{what}"
    if scenario.name == "many":
        cells = [f"**{ratio(results, scenario, target, rate):.2f} x {unit}/s**" for target in TARGETS[2:]]
    else:
        cells = [f"{ratio(results, scenario, target, cost):.2f} x CPU per {what}" for target in TARGETS[2:]]
    cells.append(f"{middle(results, scenario, 'direct', rate):,.0f} {unit}/s")
    return cells + [
        f"{middle(results, scenario, target, rate):,.0f} {unit}/s, {middle(results, scenario, target, cost):.0f} us CPU"
        for target in proxies
    ]


def report(results: Results, command: str, load: str) -> str:
    """The table as Markdown: ratios first."""
    lines = [
        "# m3-router against nginx, on one core",
        "",
        "Question: what does a request cost in the router, with prices, lanes, ledger, log and metrics, compared with",
        "nginx that only relays it? Same client, same mock engines, same run.",
        "",
        "| load | m3-router of nginx | interpreted, of nginx | direct | nginx | m3-router | interpreted |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    shown = [scenario for scenario in SCENARIOS if (scenario.name, "m3-router") in results]
    lines += [f"| {scenario.title} | {' | '.join(compare(results, scenario))} |" for scenario in shown]
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
        "  Of each figure the median of all repetitions; ratios are taken within a repetition.",
        "- m3-router is the form that its image has: the same source, its hot path compiled by mypyc (setup.py).",
        "- What bounds it: of the router's time per short request about 40 % is in the kernel (two reads, two writes),",
        "  as in nginx; then JSON (read the request, read the usage, write the ledger's line), then what is between.",
        "  Long prompts cost copies: read in pieces, joined, skipped over by the JSON reader, written.",
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
    parser.add_argument("--repetitions", type=int, default=7)
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
