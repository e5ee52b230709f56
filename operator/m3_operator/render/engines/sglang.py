"""SGLang's flags for MiniMax-M3.

Its tensor parallel size counts all ranks of a group; attention is divided among `parallelism.tensor` of them, which it
calls data parallel attention where that is fewer than all. It ends running requests by itself when SIGTERM comes. The
checkpoint's own Python classes are trusted, since SGLang reads M3's configuration with them: serve checkpoints that you
trust.

Sources: SGLang's cookbook for MiniMax-M3 and its list of server arguments.
"""

from collections.abc import Mapping
from typing import Final

from m3_operator.api import M3Deployment
from m3_operator.render.engines.launch import (
    ANY_ADDRESS,
    MODEL_DIRECTORY,
    RENDEZVOUS_PORT,
    USER,
    Launch,
    data_ranks,
    leader_name,
    pod_address,
)
from m3_operator.spec.engine import CacheType

_PARSER: Final = "minimax-m3"
_HOST: Final = "SGLANG_HOST_IP"
# Otherwise /health generates a token, and a server that is only busy is taken for dead.
_CHEAP_HEALTH: Final[Mapping[str, str]] = {"name": "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "value": "false"}
_CACHE_TYPES: Final[dict[CacheType, str]] = {"auto": "auto", "bfloat16": "bf16", "fp8": "fp8_e4m3"}


def launch(deployment: M3Deployment, group: int, rank: int) -> Launch:
    """How SGLang's server is started on one node of a group."""
    spec, parallelism = deployment.spec, deployment.spec.parallelism
    ranks, data = parallelism.nodes * parallelism.gpus_per_node, data_ranks(deployment)
    flags: dict[str, object] = {
        "model-path": MODEL_DIRECTORY,
        "served-model-name": spec.model.served_name,
        "host": ANY_ADDRESS,
        "port": spec.engine.port,
        "dtype": spec.model.dtype,
        "tp-size": ranks,
        "ep-size": ranks,
        "kv-cache-dtype": _CACHE_TYPES[spec.engine.cache_dtype],
        "max-running-requests": spec.engine.max_concurrent,
        "chunked-prefill-size": spec.engine.step_tokens,
        "tool-call-parser": _PARSER,
        "reasoning-parser": _PARSER,
    }
    switches = [
        "--trust-remote-code",
        "--enable-metrics",
        "--enable-priority-scheduling",
        "--schedule-low-priority-values-first",  # as our routers count: lower goes first
    ]
    if spec.engine.max_context_tokens is not None:
        flags["context-length"] = spec.engine.max_context_tokens
    if spec.engine.cache_tokens is not None:
        flags["max-total-tokens"] = spec.engine.cache_tokens
    if data > 1:
        flags["dp-size"] = data
        switches.append("--enable-dp-attention")
    if parallelism.nodes > 1:
        # Its sockets listen on an address, never on a name.
        leader = f"$({_HOST})" if rank == 0 else leader_name(deployment, group)
        flags |= {"nnodes": parallelism.nodes, "node-rank": rank, "dist-init-addr": f"{leader}:{RENDEZVOUS_PORT}"}
    return Launch(
        command=("python3", "-m", "sglang.launch_server"),
        arguments=(*(f"--{name}={value}" for name, value in flags.items()), *switches),
        environment=(pod_address(_HOST), USER, _CHEAP_HEALTH),
    )
