"""What a cycle needs of the API server."""

from typing import Any, Protocol

from m3_operator.observed import Manifest


class Writer(Protocol):
    """What a cycle needs of `cluster.Cluster`, which says what each method does and raises."""

    async def apply(self, manifest: Manifest, *, uid: str | None) -> dict[str, Any]: ...

    async def create(self, manifest: Manifest) -> dict[str, Any] | None: ...

    async def create_secret(self, manifest: Manifest) -> bool: ...

    async def exists(self, kind: str, namespace: str, name: str) -> bool: ...

    async def delete(
        self,
        kind: str,
        namespace: str,
        name: str,
        *,
        uid: str,
        version: str | None = None,
        grace_seconds: int | None = None,
    ) -> dict[str, Any] | None: ...

    async def open_gate(self, namespace: str, name: str, *, uid: str, at: str) -> dict[str, Any] | None: ...

    async def write_status(self, owner: Manifest, status: dict[str, Any]) -> dict[str, Any]: ...

    async def record(self, event: Manifest) -> None: ...
