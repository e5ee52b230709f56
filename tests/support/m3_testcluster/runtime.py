"""The container runtime of the real nodes: Debian's containerd, runc, CNI plugins and nft.

Owns where these programs are. Installed ones are used as they are; else the packages are unpacked into the cache,
without installing them, so that no service starts and nothing on the machine changes.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m3_testcluster.cache import cache_root, locked
from m3_testcluster.progress import Report, step, to_stderr

PACKAGES = ("containerd", "containernetworking-plugins", "nftables", "runc")
PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr", "nft", "runc")
CNI_PLUGINS = ("host-local", "loopback", "ptp")
CNI_DIRECTORIES = ("usr/lib/cni", "opt/cni/bin")


class RuntimeUnavailableError(Exception):
    """The container runtime is neither installed nor can it be fetched; the message is one line that says why."""


@dataclass(frozen=True)
class Runtime:
    """Where the runtime is: a PATH that finds its programs, the CNI plugins, and libraries that came with them."""

    path: str
    cni_directory: Path
    library_path: str

    def program(self, name: str) -> str:
        """The absolute path of one of PROGRAMS."""
        found = shutil.which(name, path=self.path)
        if found is None:
            raise RuntimeUnavailableError(f"{name} is not on {self.path}")
        return found

    @property
    def environment(self) -> dict[str, str]:
        """What a program of the runtime needs in its environment."""
        return {"PATH": self.path, **({"LD_LIBRARY_PATH": self.library_path} if self.library_path else {})}


def ensure_runtime(report: Report = to_stderr) -> Runtime:
    """The runtime that is installed, else the one of the distribution's packages, unpacked once into the cache.

    Raises RuntimeUnavailableError.
    """
    if installed := _find_in(Path("/")):
        return installed
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise RuntimeUnavailableError(f"{', '.join(PACKAGES)} are not installed and apt-get is missing")
    release = Path("/etc/os-release").read_bytes() if Path("/etc/os-release").exists() else b""
    target = cache_root() / f"runtime-{hashlib.sha256(release).hexdigest()[:16]}"
    with locked(target.with_suffix(".lock"), "container runtime", report):
        if not target.exists():
            with step(f"container runtime: fetching {', '.join(PACKAGES)} (once, not installed)", report):
                _unpack_packages(target)
    unpacked = _find_in(target)
    if unpacked is None:
        raise RuntimeUnavailableError(f"the packages {', '.join(PACKAGES)} in {target} lack a program or plugin")
    return unpacked


def _find_in(root: Path) -> Runtime | None:
    """The runtime with its files below `root` where these are complete, taking from the machine what it has."""
    own = [str(root / directory) for directory in ("usr/sbin", "usr/bin", "sbin", "bin", "usr/local/bin")]
    path = os.pathsep.join([*own, os.environ.get("PATH", os.defpath)])
    if not all(shutil.which(program, path=path) for program in PROGRAMS):
        return None
    for directory in [*(root / name for name in CNI_DIRECTORIES), *(Path("/", name) for name in CNI_DIRECTORIES)]:
        if all((directory / plugin).exists() for plugin in CNI_PLUGINS):
            libraries = (
                [] if root == Path("/") else sorted({str(p.parent) for p in root.glob("usr/lib/*-linux-*/*.so.*")})
            )
            return Runtime(path, directory, os.pathsep.join(libraries))
    return None


def _unpack_packages(target: Path) -> None:
    """Downloads the packages and what they need beyond what is installed, and unpacks them below `target`."""
    unfinished = target.with_name(target.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    archives = unfinished / "archives"
    (archives / "partial").mkdir(parents=True)
    download = [
        *("apt-get", "install", "--download-only", "--yes", "--no-install-recommends", "--no-upgrade"),
        *("-o", f"Dir::Cache::archives={archives}", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"),
        *PACKAGES,
    ]
    first = _run(download)
    if first.returncode != 0:
        # A fresh machine may have no package lists yet.
        _run(["apt-get", "update"])
        first = _run(download)
    if first.returncode != 0:
        last_line = (first.stderr.strip().splitlines() or ["apt-get said nothing"])[-1]
        raise RuntimeUnavailableError(f"{', '.join(PACKAGES)} are not installed, and apt-get: {last_line}")
    for package in sorted(archives.glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, unfinished], check=True)
    shutil.rmtree(archives)
    unfinished.rename(target)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=False
    )
