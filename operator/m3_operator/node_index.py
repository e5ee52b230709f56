"""Which nodes there are, and whose pods are on each: what a store must know to wake the owners that a node concerns.

Owned by the store. Where nodes may not be watched it knows of pods and of no node, which no decision misses.
"""

from collections.abc import Iterable, Mapping

from m3_operator.observed import Manifest, ObservedNode, ObservedPod, read_node

_Pod = tuple[str, str]  # namespace, name


class NodeIndex:
    """Nodes by name, and the deployments with pods on them."""

    def __init__(self) -> None:
        self._nodes: dict[str, ObservedNode] = {}
        self._pods_on: dict[str, dict[_Pod, str]] = {}  # by node: the deployment of each pod

    def __len__(self) -> int:
        return len(self._nodes) + len(self._pods_on)

    def put(self, manifest: Manifest) -> set[tuple[str, str]]:
        """Remember a node; the deployments (namespace, name) that its change concerns."""
        node = read_node(manifest)
        if self._nodes.get(node.name) == node:
            return set()
        self._nodes[node.name] = node
        return self._concerned(node.name)

    def remove(self, name: str) -> set[tuple[str, str]]:
        """Forget a node; the deployments that had pods on it."""
        return self._concerned(name) if self._nodes.pop(name, None) else set()

    def move(self, namespace: str, before: ObservedPod | None, after: ObservedPod | None) -> None:
        """A pod came, was bound to a node, or is gone."""
        if before is not None and before.node_name is not None:
            found = self._pods_on.get(before.node_name, {})
            found.pop((namespace, before.name), None)
            if not found:
                self._pods_on.pop(before.node_name, None)
        if after is not None and after.node_name is not None:
            self._pods_on.setdefault(after.node_name, {})[namespace, after.name] = after.deployment

    def of(self, pods: Iterable[ObservedPod]) -> Mapping[str, ObservedNode]:
        """The nodes of these pods, as far as they are known."""
        found = {pod.node_name: self._nodes.get(pod.node_name) for pod in pods if pod.node_name is not None}
        return {name: node for name, node in found.items() if node is not None}

    def _concerned(self, name: str) -> set[tuple[str, str]]:
        return {(namespace, deployment) for (namespace, _), deployment in self._pods_on.get(name, {}).items()}
