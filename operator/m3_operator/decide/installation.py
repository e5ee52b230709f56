"""What holds for every object that this operator looks after."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Installation:
    """How the operator was configured, and what the API server has."""

    worker_image: str | None = None
    """What runs where an M3Deployment names no image."""
    router_image: str | None = None
    """What runs where an M3Router names no image."""
    namespace: str | None = None
    """Where the operator itself runs; None: outside the cluster."""
    optional_kinds: frozenset[str] = frozenset()
    """Those of `resources.OPTIONAL_KINDS` that the API server knows and the operator may use."""
