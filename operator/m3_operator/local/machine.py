"""What this machine gives to `m3 up`: ports, cores, GPUs, and the commands that are installed beside `m3`.

Reads the machine, and decides nothing but which ports; `processes` shares all of it out.
"""

import math
import os
import re
import sys
import sysconfig
from pathlib import Path

from m3_operator.errors import OperatorError
from m3_operator.local import processes
from m3_operator.local.ports import Ports, PortTakenError
from m3_operator.local.state import StateDirectory

CPU_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")


def survey(served: tuple[processes.Served, ...], port: int, state: StateDirectory, ports: Ports) -> processes.Site:
    """The site for these routers and deployments; the first router gets `port`. Raises OperatorError."""
    scripts = Path(sysconfig.get_path("scripts"))
    for script in ("m3-worker", "m3-router"):
        if not os.access(scripts / script, os.X_OK):
            raise OperatorError(f"{script} is not installed beside m3: pip install 'm3serve[operator,router,worker]'")
    try:
        router_ports = [ports.exactly(port)]
    except PortTakenError as error:
        raise PortTakenError(f"{error}; name another with --port") from None
    while len(router_ports) < len(served):
        router_ports.append(ports.next_after(router_ports[-1]))
    return processes.Site(
        state=state.path,
        router_ports=tuple(router_ports),
        spare_ports=tuple(ports.free(processes.spare_port_count(served))),
        keys={one.router.metadata.name: state.key(one.router.metadata.name) for one in served},
        cpus=usable_cpus(CPU_QUOTA_FILE),
        gpus=visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), Path("/dev")),
        python=sys.executable,
        scripts=scripts,
    )


def usable_cpus(quota_file: Path) -> int:
    """Cores that this process may use: those it may run on, and no more than a container's quota (`QUOTA PERIOD`)."""
    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cpus
    return cpus if quota == "max" else max(1, min(cpus, math.ceil(int(quota) / int(period))))


def visible_gpus(chosen: str | None, devices: Path) -> tuple[str, ...]:
    """What CUDA calls the GPUs that may be used: those of CUDA_VISIBLE_DEVICES, else every NVIDIA device."""
    if chosen is not None:
        return tuple(part for part in chosen.split(",") if part not in ("", "-1"))
    found = [device for device in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", device.name)]
    return tuple(str(index) for index in range(len(found)))
