"""The API server that a person's kubeconfig points at, as kubectl reads it."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config

from m3_operator.errors import OperatorError


@dataclass(frozen=True)
class Connection:
    """A client, and the namespace of the context that it is of."""

    client: kubernetes_client.ApiClient
    namespace: str


def connect(path: Path | None) -> Connection:
    """Connect by this kubeconfig, else by $KUBECONFIG, else by ~/.kube/config. Raises OperatorError."""
    file = None if path is None else str(path)
    configuration = kubernetes_client.Configuration()
    try:
        load = partial(kubernetes_config.load_kube_config, config_file=file)
        load(client_configuration=configuration)
        contexts = partial(kubernetes_config.list_kube_config_contexts, config_file=file)
        _, active = contexts()
    except kubernetes_config.ConfigException as error:
        raise OperatorError(f"the kubeconfig cannot be used: {error}") from None
    configuration.retries = False  # a person sees the failure, and tries again
    return Connection(kubernetes_client.ApiClient(configuration), active["context"].get("namespace") or "default")
