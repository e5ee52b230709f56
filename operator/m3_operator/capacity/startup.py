"""How long a group may take to come up, worked out from the bytes that it has to read. Pure.

Pessimistic on purpose: a group that is given up while it reads half a terabyte begins again and never comes up, while
one that hangs is found a little later. Every node is taken to read the whole checkpoint, at the rate of a busy network
volume, and ten minutes are added for everything that does not grow with the model (compiling, capturing graphs, the
meeting of ranks).
"""

from math import ceil
from typing import Final

from m3_operator.api import M3Deployment
from m3_operator.capacity.releases import PACKAGED, RELEASES, tiny_shape
from m3_operator.capacity.shape import ModelShape
from m3_operator.capacity.weights import rank_weights
from m3_operator.spec.engine import LONGEST_STARTUP_SECONDS, UNKNOWN_STARTUP_SECONDS

READ_BYTES_PER_SECOND: Final = 200_000_000
"""Of one node: a pessimistic rate, not a measurement."""
ALLOWANCE_SECONDS: Final = 600


def startup_seconds(deployment: M3Deployment) -> int:
    """`probes.startupSeconds`, or what the checkpoint's size asks for; an hour where that is not known either."""
    said = deployment.spec.probes.startup_seconds
    if said is not None:
        return said
    shape = _shape(deployment)
    if shape is None:
        return UNKNOWN_STARTUP_SECONDS
    seconds = ALLOWANCE_SECONDS + ceil(checkpoint_bytes(shape) / READ_BYTES_PER_SECOND)
    return min(seconds, LONGEST_STARTUP_SECONDS)


def with_startup(deployment: M3Deployment) -> M3Deployment:
    """The deployment with its start-up time filled in, as its pods are rendered from it."""
    probes = deployment.spec.probes.model_copy(update={"startup_seconds": startup_seconds(deployment)})
    return deployment.model_copy(update={"spec": deployment.spec.model_copy(update={"probes": probes})})


def checkpoint_bytes(shape: ModelShape) -> int:
    """All weights once, in the format that they are stored in."""
    whole = rank_weights(shape, shape.precision.dtype, ranks=1, slots=shape.experts, is_first=True)
    return whole.total_bytes


def _shape(deployment: M3Deployment) -> ModelShape | None:
    model = deployment.spec.model
    if model.source.tiny is not None:
        return tiny_shape(model.source.tiny)
    if model.source.packaged is not None:
        return PACKAGED
    return None if model.release is None else RELEASES[model.release]
