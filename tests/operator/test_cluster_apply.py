"""To whom an apply goes: the object that was seen, or one that is its owner's; never a namesake of somebody else."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from kubernetes.client import ApiClient

from m3_operator.cluster import Cluster
from m3_operator.errors import NameTakenError

OURS: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "m3", "namespace": "ns", "ownerReferences": [{"uid": "uid-m3", "controller": True}]},
}


@dataclass
class OneObject:
    """An API server with one object, or none; it checks the uid of an apply."""

    there: dict[str, Any] | None
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def param_serialize(self, method: str, path: str, **options: Any) -> tuple[str, str, Any]:
        return method, path, None

    def call_api(self, method: str, path: str, header: Any, body: Any, **options: Any) -> Any:
        wanted = json.loads(body) if body else {}
        expected = wanted.get("metadata", {}).get("uid")
        self.asked.append((method, expected))
        found = (self.there or {}).get("metadata", {}).get("uid")
        if method == "GET":
            return _answer(404 if self.there is None else 200, self.there or {})
        if expected is not None and expected != found:
            return _answer(409, {"message": "uid mismatch"})
        self.there = {**wanted, "metadata": {**wanted["metadata"], "uid": found or "uid-new"}}
        return _answer(200, self.there)


def _answer(status: int, document: Any) -> Any:
    return SimpleNamespace(status=status, response=SimpleNamespace(data=json.dumps(document).encode()))


def _object(uid: str, owner: str) -> dict[str, Any]:
    references = [{"uid": owner, "controller": True}]
    return {**OURS, "metadata": {**OURS["metadata"], "uid": uid, "ownerReferences": references}}


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


async def _apply(server: OneObject, executor: ThreadPoolExecutor, uid: str | None) -> dict[str, Any]:
    return await Cluster(cast(ApiClient, server), executor).apply(OURS, uid=uid)


async def test_the_object_that_was_seen_is_applied_to_at_once(executor: ThreadPoolExecutor) -> None:
    server = OneObject(_object("uid-1", "uid-m3"))
    assert (await _apply(server, executor, "uid-1"))["metadata"]["uid"] == "uid-1"
    assert server.asked == [("PATCH", "uid-1")]


@pytest.mark.parametrize("there", [None, _object("uid-2", "uid-m3")])
async def test_one_that_went_meanwhile_is_made_again_or_found_to_be_ours(
    executor: ThreadPoolExecutor, there: dict[str, Any] | None
) -> None:
    server = OneObject(there)
    assert (await _apply(server, executor, "uid-1"))["metadata"]["uid"] in ("uid-new", "uid-2")
    assert server.asked == [("PATCH", "uid-1"), ("GET", None), ("PATCH", None)]


@pytest.mark.parametrize("seen", [None, "uid-1"])
async def test_a_namesake_of_somebody_else_is_not_taken_over(executor: ThreadPoolExecutor, seen: str | None) -> None:
    server = OneObject(_object("uid-2", "uid-other"))
    with pytest.raises(NameTakenError):
        await _apply(server, executor, seen)
    assert ("PATCH", None) not in server.asked
    assert server.there == _object("uid-2", "uid-other")
