"""vLLM's flags for MiniMax-M3, from version 0.24 on, the first that knows the model.

Experts are shared by all ranks of a group (tensor x data ranks), attention is copied once for each data rank, and every
node but the first runs without an HTTP API. Pages of 128 tokens are not a choice: they are M3's sparse blocks. vLLM
gives up what it is doing on SIGTERM unless it is told how long to go on.

Sources: vLLM's recipe for MiniMax-M3, and its pages on expert parallel and data parallel deployment.
"""

import json
from math import ceil
from typing import Any, Final

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

KV_EVENTS_PORT: Final = 5557
KV_EVENTS_PORT_NAME: Final = "kv-events"
_PAGE_TOKENS: Final = 128
_PARSER: Final = "minimax_m3"
_HOST: Final = "VLLM_HOST_IP"


def launch(deployment: M3Deployment, group: int, rank: int) -> Launch:
    """How `vllm serve` is started on one node of a group."""
    spec, parallelism = deployment.spec, deployment.spec.parallelism
    data = data_ranks(deployment)
    flags: dict[str, object] = {
        "served-model-name": spec.model.served_name,
        "host": ANY_ADDRESS,
        "port": spec.engine.port,
        "dtype": spec.model.dtype,
        "tensor-parallel-size": parallelism.tensor,
        "block-size": _PAGE_TOKENS,
        "kv-cache-dtype": spec.engine.cache_dtype,
        # A data rank takes requests of its own: the group's sequences are divided among them.
        "max-num-seqs": ceil(spec.engine.max_concurrent / data),
        "max-num-batched-tokens": spec.engine.step_tokens,
        "scheduling-policy": "priority",  # without it a request that names one is refused
        "tool-call-parser": _PARSER,
        "reasoning-parser": _PARSER,
        "shutdown-timeout": spec.drain.timeout_seconds,
    }
    if spec.engine.max_context_tokens is not None:
        flags["max-model-len"] = spec.engine.max_context_tokens
    switches = ["--enable-prefix-caching", "--enable-auto-tool-choice", "--enable-expert-parallel"]
    if data > 1:
        flags |= _data_parallel(deployment, group, rank, data)
    if rank > 0:
        switches.append("--headless")
    events = kv_events_port(deployment)
    if events is not None:
        publisher = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"tcp://*:{events}"}
        flags["kv-events-config"] = json.dumps(publisher)
    return Launch(
        command=("vllm", "serve"),
        arguments=(str(MODEL_DIRECTORY), *(f"--{name}={value}" for name, value in flags.items()), *switches),
        environment=(pod_address(_HOST), USER),
        ports=() if events is None else ((KV_EVENTS_PORT_NAME, events),),
    )


def kv_events_port(deployment: M3Deployment) -> int | None:
    """Where rank 0 publishes what it caches; None where several data ranks each have a cache and a port of their own,
    of which a router could follow one."""
    return KV_EVENTS_PORT if data_ranks(deployment) == 1 else None


def _data_parallel(deployment: M3Deployment, group: int, rank: int, data: int) -> dict[str, Any]:
    nodes = deployment.spec.parallelism.nodes
    flags: dict[str, Any] = {"data-parallel-size": data}
    if nodes > 1:
        local = data // nodes
        flags["data-parallel-size-local"] = local
        # Its sockets listen on an address, never on a name.
        flags["data-parallel-address"] = f"$({_HOST})" if rank == 0 else leader_name(deployment, group)
        flags["data-parallel-rpc-port"] = RENDEZVOUS_PORT
        if rank > 0:
            flags["data-parallel-start-rank"] = rank * local
    return flags
