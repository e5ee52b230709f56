"""All requests of the operator to the API server, and all its writes.

Owns the translation of HTTP into values and errors. Pods and Secrets are created once; everything else is written by
server-side apply under one field manager; deletions name the uid that was seen, so that a namesake is safe. What to
write, and whether, is decided elsewhere.

The official client blocks, so each request runs on a thread of a pool of its own; measured on a real API server that
is far quicker than the operator needs to be.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Final

import urllib3.exceptions
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException

from m3_operator import names
from m3_operator.errors import (
    ApiError,
    ChangedError,
    ConflictError,
    GoneError,
    NameTakenError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)
from m3_operator.observed import Manifest, owner_uid, uid
from m3_operator.resources import RESOURCES, table_kind

_TIMEOUT_SECONDS: Final = 30
_PAGE: Final = 100
_TRANSIENT: Final = (408, 429)
_JSON: Final = "application/json"
_APPLY: Final = "application/apply-patch+yaml"
_STRATEGIC_MERGE: Final = "application/strategic-merge-patch+json"
_MERGE: Final = "application/merge-patch+json"


def _observe_nothing(method: str, path: str, status: int) -> None:
    """Nobody counts requests."""


class Cluster:
    """One API server, as one user. Every method may raise UnavailableError and RefusedError."""

    def __init__(
        self,
        client: ApiClient,
        executor: Executor,
        *,
        timeout_seconds: float = _TIMEOUT_SECONDS,
        observe: Callable[[str, str, int], None] = _observe_nothing,
    ) -> None:
        """`observe` is told method, path and status (0: no answer) of each request, on the thread that made it."""
        self._client = client
        self._executor = executor
        self._timeout_seconds = timeout_seconds
        self._observe = observe

    async def close(self, timeout_seconds: float) -> None:
        """Make no further request, and wait so long for those that are on their way."""
        closing = asyncio.to_thread(self._executor.shutdown, wait=True, cancel_futures=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(closing, timeout_seconds)

    async def list(self, kind: str, namespace: str | None, selector: str = "") -> list[dict[str, Any]]:
        """All objects of a kind. Raises NotFoundError if the API server does not know the kind."""
        return [item async for page in self.pages(kind, namespace, selector) for item in page]

    async def pages(
        self, kind: str, namespace: str | None, selector: str = ""
    ) -> AsyncIterator[Sequence[dict[str, Any]]]:
        """The same page by page: all pods of a large cluster at once are hundreds of megabytes."""
        resource, token = RESOURCES[kind], ""
        while True:
            query = {"limit": str(_PAGE), "labelSelector": selector, "continue": token}
            page = await self._request("GET", resource.path(namespace), query=query)
            # Items of a list do not say what they are.
            called = {"apiVersion": resource.api_version, "kind": resource.kind or kind}
            yield [{**item, **called} for item in page.get("items") or ()]
            token = page.get("metadata", {}).get("continue", "")
            if not token:
                return

    async def read(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        """One object as it is now. Raises NotFoundError."""
        return await self._request("GET", RESOURCES[kind].path(namespace, name))

    async def overwrite(self, manifest: Manifest) -> dict[str, Any]:
        """Write all of an object, or make it; returns it. Raises ConflictError if it is not of the version named."""
        return await self._request("PUT", _path(manifest), body=manifest)

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        """One object. Raises NotFoundError."""
        return await self._request("GET", RESOURCES[kind].path(namespace, name))

    async def merge(self, kind: str, namespace: str, name: str, patch: Manifest, *, manager: str) -> dict[str, Any]:
        """JSON merge patch of one object. Raises NotFoundError, and ConflictError if its version is another by now."""
        path = RESOURCES[kind].path(namespace, name)
        return await self._request("PATCH", path, query={"fieldManager": manager}, body=patch, content_type=_MERGE)

    async def apply(self, manifest: Manifest, *, uid: str | None) -> dict[str, Any]:
        """Server-side apply of our fields to the object with this uid; returns the object as it is now.

        One that was not seen before (`uid` is None), or that took the place of the one that was, may be somebody
        else's: applying would take it over, and deleting our owner would delete it. Raises NameTakenError then.
        """
        if uid is not None:
            with contextlib.suppress(ConflictError):
                return await self._apply({**manifest, "metadata": {**manifest["metadata"], "uid": uid}})
        await self._refuse_if_taken(manifest)
        return await self._apply(manifest)

    async def create(self, manifest: Manifest) -> dict[str, Any] | None:
        """Create an object that is never changed; returns it, or None if our owner has one of that name already.

        Raises NameTakenError if the one that is there has another owner.
        """
        metadata = manifest["metadata"]
        path = RESOURCES[table_kind(manifest)].path(metadata["namespace"])
        try:
            return await self._request("POST", path, query={"fieldManager": names.FIELD_MANAGER}, body=manifest)
        except ConflictError:
            await self._refuse_if_taken(manifest)
            return None

    async def create_secret(self, manifest: Manifest) -> bool:
        """Create a Secret unless there is one of that name, which is left alone and never read. Whether it is new."""
        path = RESOURCES["Secret"].path(manifest["metadata"]["namespace"])
        try:
            await self._request("POST", path, query={"fieldManager": names.FIELD_MANAGER}, body=manifest)
        except ConflictError:
            return False
        return True

    async def exists(self, kind: str, namespace: str, name: str) -> bool:
        """Whether there is such an object, asked by a dry run of creating it: the right to read it is not needed."""
        resource = RESOURCES[kind]
        body = {"apiVersion": resource.api_version, "kind": kind, "metadata": {"name": name, "namespace": namespace}}
        try:
            await self._request("POST", resource.path(namespace), query={"dryRun": "All"}, body=body)
        except ConflictError:
            return True
        return False

    async def delete(
        self,
        kind: str,
        namespace: str,
        name: str,
        *,
        uid: str,
        version: str | None = None,
        grace_seconds: int | None = None,
    ) -> dict[str, Any] | None:
        """Delete the object with this uid; returns it if it is still on its way out. Gone already is fine.

        With a `version`, only if the object is as it was then: raises ChangedError if it is not.
        """
        options: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid, **({"resourceVersion": version} if version is not None else {})},
            "propagationPolicy": "Background",
        }
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            answer = await self._request("DELETE", RESOURCES[kind].path(namespace, name), body=options)
        except NotFoundError:
            return None
        except ConflictError as error:
            await self._refuse_if_there(kind, namespace, name, uid, error)
            return None
        return answer if answer.get("kind") == (RESOURCES[kind].kind or kind) else None

    async def open_gate(self, namespace: str, name: str, *, uid: str, at: str) -> dict[str, Any] | None:
        """Take our gate away from the pod with this uid, and note when; returns it, or None if it is gone by now."""
        body = {
            "metadata": {"uid": uid, "annotations": {names.OPENED_ANNOTATION: at}},
            "spec": {"schedulingGates": [{"$patch": "delete", "name": names.GROUP_GATE}]},
        }
        path = RESOURCES["Pod"].path(namespace, name)
        query = {"fieldManager": names.FIELD_MANAGER}
        try:
            return await self._request("PATCH", path, query=query, body=body, content_type=_STRATEGIC_MERGE)
        except (NotFoundError, ConflictError):
            return None

    async def write_status(self, owner: Manifest, status: Mapping[str, Any]) -> dict[str, Any]:
        """Server-side apply of the status; returns the object. Raises GoneError if it is gone or another by now, and
        ConflictError or NotFoundError if nothing was done though it is there, or its whole kind is not."""
        metadata = {key: owner["metadata"][key] for key in ("name", "namespace", "uid")}
        body = {"apiVersion": names.API_VERSION, "kind": owner["kind"], "metadata": metadata, "status": status}
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        path = RESOURCES[owner["kind"]].path(metadata["namespace"], metadata["name"], "status")
        try:
            return await self._request("PATCH", path, query=query, body=body, content_type=_APPLY)
        except (NotFoundError, ConflictError) as error:
            if await self._is_there(owner):
                raise
            raise GoneError(str(error), metadata["uid"]) from None

    async def record(self, event: Manifest) -> None:
        """Write one Event."""
        path = RESOURCES["Event"].path(event["metadata"]["namespace"])
        await self._request("POST", path, body=event)

    async def _apply(self, manifest: Manifest) -> dict[str, Any]:
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        return await self._request("PATCH", _path(manifest), query=query, body=manifest, content_type=_APPLY)

    async def _refuse_if_there(self, kind: str, namespace: str, name: str, uid: str, error: ConflictError) -> None:
        """A deletion that met a conflict: the object is another by now, or nothing was done and it must be tried again.

        Raises ChangedError in the second case: whoever took the object for gone would not look at it again.
        """
        try:
            found = await self._request("GET", RESOURCES[kind].path(namespace, name))
        except NotFoundError:
            return
        if found["metadata"]["uid"] == uid:
            called = {"apiVersion": RESOURCES[kind].api_version, "kind": RESOURCES[kind].kind or kind}
            raise ChangedError(str(error), {**found, **called}) from None

    async def _is_there(self, manifest: Manifest) -> bool:
        """Whether there is an object of this uid, asked by a list of one: that right is there anyway."""
        metadata = manifest["metadata"]
        path = RESOURCES[table_kind(manifest)].path(metadata["namespace"])
        page = await self._request("GET", path, query={"fieldSelector": f"metadata.name={metadata['name']}"})
        return any(uid(found) == metadata["uid"] for found in page.get("items") or ())

    async def _refuse_if_taken(self, manifest: Manifest) -> None:
        try:
            found = await self._request("GET", _path(manifest))
        except NotFoundError:
            return
        if owner_uid(found) != owner_uid(manifest):
            where = f"{manifest['kind']} {manifest['metadata']['namespace']}/{manifest['metadata']['name']}"
            raise NameTakenError(
                f"{where} belongs to somebody else; remove it, or give this object another name (uid {uid(found)})"
            )

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = _JSON,
    ) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        answer: dict[str, Any] = await loop.run_in_executor(
            self._executor, lambda: self._request_blocking(method, path, query or {}, body, content_type)
        )
        return answer

    def _request_blocking(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | None,
        content_type: str,
    ) -> dict[str, Any]:
        request = self._client.param_serialize(
            method,
            path,
            query_params=[(key, value) for key, value in query.items() if value],
            header_params={"Accept": _JSON, "Content-Type": content_type},
            auth_settings=["BearerToken"],
        )
        try:
            answer = self._client.call_api(
                request[0],
                request[1],
                request[2],
                # The client encodes what it knows to be JSON, and passes anything else on as it is.
                json.dumps(body) if content_type == _APPLY else body,
                _request_timeout=self._timeout_seconds,
            )
            text = bytes(answer.response.data).decode()
        except ApiException as error:
            self._observe(method, path, error.status or 0)
            raise classify(error.status or 0, f"{method} {path}", str(error.body or error.reason)) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self._observe(method, path, 0)
            raise UnavailableError(0, f"{method} {path}: {error}") from None
        self._observe(method, path, answer.status)
        if answer.status >= 400:
            raise classify(answer.status, f"{method} {path}", text)
        parsed: dict[str, Any] = json.loads(text)
        return parsed


def classify(status: int, request: str, body: str) -> ApiError:
    """The error of an answer, by what is to be done about it. `body` is a Status object or any text."""
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = body[:1024]
    words = f"{request}: {message or f'HTTP {status}'}"
    if status == 404:
        return NotFoundError(status, words)
    if status == 409:
        return ConflictError(status, words)
    if status == 0 or status >= 500 or status in _TRANSIENT:
        return UnavailableError(status, words)
    return RefusedError(status, message or words)


def _path(manifest: Manifest) -> str:
    metadata = manifest["metadata"]
    return RESOURCES[table_kind(manifest)].path(metadata["namespace"], metadata["name"])
