"""`python -m m3_testcluster build | up | modules`: the test cluster from a shell, for contributors and for CI.

Owns the command line. `build` makes what the tests would make on first use; `up` keeps a cluster until Ctrl-C;
`modules` writes the go.mod files anew after a change of the pins.
"""

import argparse
import signal
import sys
import time

from m3_testcluster.build import CONTROL_PLANE, BuildError, ensure_built
from m3_testcluster.cache import cache_root
from m3_testcluster.cluster import Cluster
from m3_testcluster.control_plane import control_plane
from m3_testcluster.modules import DEFAULT_GO, MODULES, PINS, write_module
from m3_testcluster.network import NetworkError
from m3_testcluster.preflight import preflight
from m3_testcluster.process import StartError
from m3_testcluster.progress import step
from m3_testcluster.real import real_cluster
from m3_testcluster.runtime import RuntimeUnavailableError
from m3_testcluster.toolchain import ToolchainError, find_go, parse_version


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m m3_testcluster", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("build", "build the binaries once"), ("up", "run a cluster until Ctrl-C")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--control-plane", action="store_true", help="without nodes that run containers")
    commands.add_parser("modules", help="write go.mod and go.sum of every pin anew")
    arguments = parser.parse_args(argv)
    try:
        if arguments.command == "modules":
            return write_modules()
        return (build if arguments.command == "build" else up)(arguments.control_plane)
    except (BuildError, NetworkError, RuntimeUnavailableError, StartError, ToolchainError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def build(control_plane_only: bool) -> int:
    """Builds what is missing and prints the directory."""
    started = time.monotonic()
    binaries = ensure_built(CONTROL_PLANE) if control_plane_only else ensure_built()
    print(f"test cluster binaries: {binaries.directory} ({time.monotonic() - started:.0f} s)")
    return 0


def write_modules() -> int:
    """Writes every wrapper module anew, for the versions in `modules.PINS`."""
    go = find_go(parse_version(DEFAULT_GO), cache_root())
    for name in PINS:
        with step(f"go.mod and go.sum of {name}"):
            write_module(go, name, MODULES / name)
    return 0


def up(control_plane_only: bool) -> int:
    """Runs a cluster until Ctrl-C or SIGTERM."""
    if not control_plane_only and (reason := preflight()):
        print(f"error: no real nodes on this machine: {reason}; --control-plane needs none", file=sys.stderr)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):  # both, as a shell starts background jobs with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    started = time.monotonic()
    try:
        with control_plane() if control_plane_only else real_cluster() as cluster:
            _show(cluster, time.monotonic() - started)
            signal.pause()
    except KeyboardInterrupt:
        print("\nstopped; everything is removed")
    return 0


def _show(cluster: Cluster, seconds: float) -> None:
    print(
        f"The cluster is up after {seconds:.1f} s. In another shell:\n\n"
        f"  export KUBECONFIG={cluster.kubeconfig}\n"
        f"  {cluster.kubectl_path} get nodes\n\n"
        f"Logs: {cluster.logs}\nCtrl-C stops it and removes everything.",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
