"""The packages of the test environment, mounted into pods: torch is too large for images that are written each run.

Owns the volume, its mount and the variable by which a pod's Python finds it.
"""

import sysconfig
from typing import Any

MOUNT_PATH = "/opt/environment"
PYTHONPATH = {"name": "PYTHONPATH", "value": MOUNT_PATH}
"""The environment variable for the container."""


def environment_volume() -> dict[str, Any]:
    """The pod's volume: this environment's packages, from the machine that the nodes run on."""
    return {"name": "environment", "hostPath": {"path": sysconfig.get_path("purelib"), "type": "Directory"}}


def environment_mount() -> dict[str, Any]:
    """The container's mount of that volume."""
    return {"name": "environment", "mountPath": MOUNT_PATH, "readOnly": True}
