"""What an engine's module answers: how the process of one rank is started. Everything else of a pod is the same.

Every engine here listens on `engine.port` at rank 0 alone, answers `GET /health` with 200 once it can serve, and ends
what it is doing when SIGTERM comes; a module says how it is made to.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from m3_operator import names
from m3_operator.api import M3Deployment

MODEL_DIRECTORY: Final = PurePosixPath("/model")
RENDEZVOUS_PORT: Final = 29500
RENDEZVOUS_PORT_NAME: Final = "rendezvous"
ANY_ADDRESS: Final = "0.0.0.0"  # noqa: S104 - inside a pod, whose network is its own

USER: Final[Mapping[str, str]] = {"name": "USER", "value": "m3serve"}
"""torch names a cache after the user, and the user of a locked-down pod is in no file."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """The process of one rank."""

    command: tuple[str, ...]
    arguments: tuple[str, ...]
    """Ours; the user's come after them, and win."""
    environment: tuple[Mapping[str, Any], ...] = ()
    """Ours; the user's come after them, and win."""
    ports: tuple[tuple[str, int], ...] = ()
    """Names and numbers of what rank 0 serves beside its HTTP API."""


def leader_name(deployment: M3Deployment, group: int) -> str:
    """Where the ranks of a group find rank 0: a name of the group's headless Service."""
    name = deployment.metadata.name
    return f"{names.pod_name(name, group, 0)}.{names.group_name(name, group)}"


def data_ranks(deployment: M3Deployment) -> int:
    """Copies of the attention weights in one group, each with requests of its own."""
    parallelism = deployment.spec.parallelism
    return parallelism.nodes * parallelism.gpus_per_node // parallelism.tensor


def pod_address(variable: str) -> dict[str, Any]:
    """An environment variable with the pod's own address, for what cannot listen on a name."""
    return {"name": variable, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
