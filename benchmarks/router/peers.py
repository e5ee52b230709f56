"""The peers, installed from `peers.txt` (versions and hashes) into a virtual environment outside of the repository."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from rig import HERE, UnavailableError, say

PINS = HERE / "peers.txt"
NAMES = ("vllm-router", "smg")


def install() -> Path | UnavailableError:
    """The environment that has them; made once per state of the pins. An error instead if that fails."""
    digest = hashlib.sha256(PINS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    environment = _cache() / "router-peers" / digest
    complete = environment / "complete"
    if complete.exists():
        return environment
    say(f"installing {' and '.join(NAMES)} (once, cached in {environment.parent})")
    shutil.rmtree(environment, ignore_errors=True)
    pip = [str(environment / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, capture_output=True)
        subprocess.run([*pip, "--only-binary", ":all:", "-r", str(PINS)], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        words = str(getattr(error, "stderr", "") or error).strip().splitlines()
        return UnavailableError(f"could not be installed: {words[-1] if words else 'no reason given'}")
    complete.touch()
    return environment


def versions() -> list[str]:
    """`name version` of each, as pinned."""
    pinned = dict(line.split(" ")[0].split("==") for line in PINS.read_text().splitlines() if "==" in line)
    return [f"{name} {pinned[name]}" for name in NAMES]


def _cache() -> Path:
    if own := os.environ.get("M3_CACHE_DIR"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "m3serve"
