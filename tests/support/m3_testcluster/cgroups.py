"""Control groups for the pods of a node, of version 1 (one tree for each controller) or 2 (one tree for all).

Owns how a group is made and found again; the kubelet makes the groups below it.
"""

import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
# What the kubelet needs of version 1; each may be a tree of its own or a link to one that holds several.
NEEDED_TREES = ("cpu", "cpuacct", "cpuset", "memory", "pids")


def make_cgroup(name: str) -> None:
    """Makes a group in every tree, able to hold the groups of pods. Raises OSError where this machine refuses."""
    if (ROOT / "cgroup.controllers").exists():
        for group in (ROOT, ROOT / name):
            group.mkdir(exist_ok=True)
            controllers = (group / "cgroup.controllers").read_text().split()
            (group / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in controllers))
        return
    for tree in {(ROOT / name).resolve(strict=True) for name in NEEDED_TREES} | set(_trees()):
        (tree / name).mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            # A new cpuset is empty, and no process can enter it before it has CPUs and memory nodes.
            if (inherited := tree / setting).exists():
                (tree / name / setting).write_text(inherited.read_text())


def find_cgroups(pattern: str) -> list[Path]:
    """The groups whose names match `pattern`, and all below them, children first."""
    tops = [*ROOT.glob(f"*/{pattern}"), *ROOT.glob(pattern)]
    return [Path(found) for top in tops for found, _, _ in os.walk(top, topdown=False)]


def processes_of(group: Path) -> set[int]:
    """The process ids in a group, not in those below it."""
    try:
        return {int(line) for line in (group / "cgroup.procs").read_text().split()} - {0}
    except OSError:
        return set()  # gone meanwhile, or a threaded group, whose parent lists its processes


def remove_cgroup(group: Path) -> bool:
    """Whether the group is gone now; it stays while a process is in it or a group below it."""
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _trees() -> list[Path]:
    return [path for path in ROOT.iterdir() if path.is_dir() and not path.is_symlink()]
