"""Builds the binaries of the test cluster, each once, into a cache outside the repository.

Owns the build flags, and the cache key made of them and of the pins in `modules`. A binary appears under its name only
when it is complete, so an interrupted build goes on where it stopped and nothing half-built is ever run.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from m3_testcluster.cache import cache_root, locked
from m3_testcluster.modules import MODULES, PINS
from m3_testcluster.process import DIE_WITH_PARENT
from m3_testcluster.progress import Report, step, to_stderr
from m3_testcluster.toolchain import find_go, required_version

GO_ENVIRONMENT = {"CGO_ENABLED": "0", "GOFLAGS": "-trimpath -buildvcs=false -modcacherw", "GOTOOLCHAIN": "local"}
STRIPPED = "-s -w"


class BuildError(Exception):
    """A binary could not be built or is missing; the message names it and shows why."""


@dataclass(frozen=True)
class Binary:
    """One program: its name, the wrapper module below MODULES that pins it, its Go package, and its linker flags."""

    name: str
    module: str
    package: str
    linker_flags: str = STRIPPED


def _kubernetes_linker_flags(version: str) -> str:
    """Without these every Kubernetes binary reports the version `v0.0.0-master`."""
    major, minor, _ = version.removeprefix("v").split(".")
    facts = {
        "gitVersion": version,
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "gitCommit": "0" * 40,
        "buildDate": "1970-01-01T00:00:00Z",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(
        [STRIPPED, *(f"-X {package}.{key}={value}" for package in packages for key, value in facts.items())]
    )


def _kubernetes(name: str) -> Binary:
    return Binary(
        name, "kubernetes", f"k8s.io/kubernetes/cmd/{name}", _kubernetes_linker_flags(PINS["kubernetes"].version)
    )


CONTROL_PLANE = (
    Binary("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
    _kubernetes("kube-apiserver"),
    _kubernetes("kube-controller-manager"),
    _kubernetes("kube-scheduler"),
    _kubernetes("kubectl"),
    Binary("kwok", "kwok", "sigs.k8s.io/kwok/cmd/kwok"),
)
REAL_NODES = (
    _kubernetes("kubelet"),
    _kubernetes("kube-proxy"),
    Binary("coredns", "coredns", "github.com/coredns/coredns"),
    Binary("pause", "pause", "."),
)
ALL = CONTROL_PLANE + REAL_NODES


@dataclass(frozen=True)
class Binaries:
    """A directory in which every program of the test cluster is known to be complete."""

    directory: Path

    def __getitem__(self, name: str) -> str:
        """The absolute path of the program `name`."""
        return str(self.directory / name)


def cache_key(binaries: tuple[Binary, ...] = ALL, modules: Path = MODULES) -> str:
    """A short digest of all that decides what the binaries are: pins, packages, flags and the wrapper modules."""
    inputs = {
        "platform": [os.uname().sysname, os.uname().machine],
        "environment": GO_ENVIRONMENT,
        "binaries": [[b.name, b.module, b.package, b.linker_flags] for b in binaries],
        "modules": {
            str(path.relative_to(modules)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(modules.glob("*/*"))
        },
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def ensure_built(wanted: tuple[Binary, ...] = ALL, report: Report = to_stderr) -> Binaries:
    """The binaries, built now if they are not there yet.

    `M3_TEST_CLUSTER_BIN=DIR` takes them from DIR instead and builds nothing. Raises BuildError.
    """
    if given := os.environ.get("M3_TEST_CLUSTER_BIN"):
        return _check_given(Path(given).absolute(), wanted)
    directory = cache_root() / cache_key()
    if _missing(directory, wanted):
        with locked(directory.with_suffix(".lock"), "test cluster build", report):
            _build_missing(directory, wanted, report)
    return Binaries(directory)


def _missing(directory: Path, wanted: tuple[Binary, ...]) -> list[Binary]:
    return [binary for binary in wanted if not os.access(directory / binary.name, os.X_OK)]


def _check_given(directory: Path, wanted: tuple[Binary, ...]) -> Binaries:
    if missing := _missing(directory, wanted):
        names = ", ".join(binary.name for binary in missing)
        raise BuildError(
            f"M3_TEST_CLUSTER_BIN={directory} lacks {names}: put executable files of these names there, "
            "or unset the variable to have them built"
        )
    return Binaries(directory)


def _build_missing(directory: Path, wanted: tuple[Binary, ...], report: Report) -> None:
    """Builds what `wanted` still lacks. The Go caches (several GB) go once nothing is left to build."""
    go = find_go(required_version(MODULES.glob("*/go.mod")), cache_root(), report)
    directory.mkdir(parents=True, exist_ok=True)
    work = directory.with_suffix(".work")
    environment = {
        **os.environ,
        **GO_ENVIRONMENT,
        "GOCACHE": str(work / "build"),
        "GOMODCACHE": str(work / "modules"),
        "GOPATH": str(work / "path"),
        "GOTMPDIR": str(work / "tmp"),
    }
    (work / "tmp").mkdir(parents=True, exist_ok=True)
    missing = _missing(directory, wanted)
    for number, binary in enumerate(missing, start=1):
        with step(f"test cluster: building {binary.name} ({number} of {len(missing)}, once)", report):
            _build_one(go, binary, directory, environment)
    if not _missing(directory, ALL):
        shutil.rmtree(work, ignore_errors=True)


def _build_one(go: Path, binary: Binary, directory: Path, environment: Mapping[str, str]) -> None:
    unfinished = directory / f".{binary.name}.partial"
    done = subprocess.run(
        [*DIE_WITH_PARENT, go, "build", "-ldflags", binary.linker_flags, "-o", unfinished, binary.package],
        cwd=MODULES / binary.module,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"building {binary.name} failed with status {done.returncode}:\n{done.stderr.strip()[-4000:]}")
    unfinished.replace(directory / binary.name)
