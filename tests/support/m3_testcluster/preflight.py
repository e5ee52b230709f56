"""Whether this machine can run nodes with containers, tried out rather than guessed.

Owns the list of what is needed and the one line that says what is missing. Leaves nothing behind: what it makes lies
in namespaces that end with the trial.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from m3_testcluster.cgroups import find_cgroups, make_cgroup, remove_cgroup
from m3_testcluster.progress import Report, to_stderr
from m3_testcluster.runtime import Runtime, RuntimeUnavailableError, ensure_runtime

COMMANDS = ("ip", "ldd", "mount", "nsenter", "setpriv", "unshare")
# Socket addresses in the file system are limited to 108 bytes.
LONGEST_TEMPORARY_DIRECTORY = 60

TRIALS = (
    ("network namespaces", "true"),
    ("bridges", "ip link add sw0 type bridge"),
    ("veth pairs", "ip link add v0 type veth peer name v1"),
    ("overlay mounts in {directory}", "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged"),
    ("nftables", "nft 'add table ip trial; add chain ip trial nat { type nat hook prerouting priority 0; }'"),
)


def preflight(report: Report = to_stderr) -> str | None:
    """Why this machine cannot run real nodes, in one line; None where it can."""
    if os.geteuid() != 0:
        return "it needs root"
    if missing := [command for command in COMMANDS if not shutil.which(command)]:
        return f"the command {missing[0]} is missing"
    if len(tempfile.gettempdir()) > LONGEST_TEMPORARY_DIRECTORY:
        return f"the path of the temporary directory {tempfile.gettempdir()} is too long for sockets: set TMPDIR"
    try:
        runtime = ensure_runtime(report)
    except RuntimeUnavailableError as error:
        return str(error)
    return _missing_cgroups() or _failed_trial(runtime)


def _missing_cgroups() -> str | None:
    name = f"m3t-preflight-{os.getpid()}"
    try:
        make_cgroup(name)
    except OSError as error:
        return f"control groups cannot be made: {error}"
    finally:
        for group in find_cgroups(name):
            remove_cgroup(group)
    return None


def _failed_trial(runtime: Runtime) -> str | None:
    environment = {**os.environ, **runtime.environment}
    with tempfile.TemporaryDirectory(prefix="m3t-") as directory:
        for name in ("lower", "upper", "work", "merged"):
            Path(directory, name).mkdir()
        for what, script in TRIALS:
            command = ["unshare", "--mount", "--net", "sh", "-ec", script]
            done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                said = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
                return f"{what.format(directory=tempfile.gettempdir())} do not work: {said[0]}"
    return None
