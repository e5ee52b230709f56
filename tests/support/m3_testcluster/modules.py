"""The Go modules that pin what the test cluster is built from, below `tests/cluster/modules`.

Owns the pinned versions and the writing of go.mod and go.sum, which a contributor does to move to newer versions
(`python -m m3_testcluster modules`); a build only reads them. A module of our own around each program is needed because
`go install PROGRAM@VERSION` refuses programs whose go.mod has replacements, as that of Kubernetes does.
"""

import json
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).resolve().parents[2] / "cluster" / "modules"
DEFAULT_GO = "1.26.0"


@dataclass(frozen=True)
class Pin:
    """One upstream module, its version, and the packages of it that are programs."""

    path: str
    version: str
    programs: tuple[str, ...]


KUBERNETES_PROGRAMS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "kube-proxy",
)
PINS = {
    "kubernetes": Pin("k8s.io/kubernetes", "v1.37.1", tuple(f"k8s.io/kubernetes/cmd/{p}" for p in KUBERNETES_PROGRAMS)),
    "etcd": Pin("go.etcd.io/etcd/server/v3", "v3.7.3", ("go.etcd.io/etcd/server/v3",)),
    "kwok": Pin("sigs.k8s.io/kwok", "v0.8.0", ("sigs.k8s.io/kwok/cmd/kwok",)),
    "coredns": Pin("github.com/coredns/coredns", "v1.15.0", ("github.com/coredns/coredns",)),
}


def write_module(go: Path, name: str, directory: Path) -> None:
    """Writes go.mod and go.sum of the module `name` into `directory`. Raises subprocess.CalledProcessError."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "go.sum").unlink(missing_ok=True)
    pin = PINS[name]
    upstream = _upstream_go_mod(go, pin) if name == "kubernetes" else ""
    (directory / "go.mod").write_text(render_go_mod(name, pin, upstream))
    _go(go, ["mod", "tidy"], directory)


def render_go_mod(name: str, pin: Pin, upstream: str) -> str:
    """The go.mod before `go mod tidy` completes it.

    `upstream` is the go.mod of Kubernetes, or empty: its `godebug` line decides how the programs behave, and where it
    replaces a module by a folder of its own repository, the published module of the same release has to be named.
    The `tool` lines have no other use than to make tidy keep the requirement.
    """
    go_version = re.search(r"^go (\S+)$", upstream, re.MULTILINE)
    godebug = re.search(r"^godebug .+$", upstream, re.MULTILINE)
    staging = re.findall(r"^\t(k8s\.io/\S+) => \./staging/", upstream, re.MULTILINE)
    staging_version = "v0." + pin.version.removeprefix("v1.")
    lines = [
        f"module testcluster.invalid/{name}",
        f"go {go_version[1] if go_version else DEFAULT_GO}",
        *([godebug[0]] if godebug else []),
        _block("tool", pin.programs),
        f"require {pin.path} {pin.version}",
        _block("replace", [f"{module} => {module} {staging_version}" for module in staging]),
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def _block(keyword: str, entries: Sequence[str]) -> str:
    """The entries of one keyword in the form that Go itself writes."""
    if len(entries) <= 1:
        return "".join(f"{keyword} {entry}" for entry in entries)
    return "\n".join([f"{keyword} (", *(f"\t{entry}" for entry in entries), ")"])


def _upstream_go_mod(go: Path, pin: Pin) -> str:
    found = _go(go, ["mod", "download", "-json", f"{pin.path}@{pin.version}"], Path.cwd())
    return Path(json.loads(found)["GoMod"]).read_text()


def _go(go: Path, arguments: Sequence[str], directory: Path) -> str:
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-modcacherw"}
    done = subprocess.run(
        [go, *arguments], cwd=directory, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout
