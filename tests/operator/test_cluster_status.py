"""What becomes of a status whose object is gone, is another by now, or was written by somebody else meanwhile."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest
from kubernetes.client import ApiClient

from m3_operator.cluster import Cluster
from m3_operator.errors import ConflictError, GoneError, NotFoundError
from operator_cycles import deployment


class StatusServer:
    """Answers a PATCH with this code, and a list with another one or objects of these uids."""

    def __init__(self, code: int, *uids: str, lists: int = 200) -> None:
        self.code, self.uids, self.lists = code, uids, lists
        self.asked: list[tuple[str, str]] = []

    def param_serialize(self, method: str, path: str, **options: Any) -> tuple[str, str, Any]:
        query = dict(options["query_params"])
        return method, f"{path}?{query['fieldSelector']}" if "fieldSelector" in query else path, None

    def call_api(self, method: str, path: str, *_: Any, **options: Any) -> Any:
        self.asked.append((method, path.rpartition("/")[2]))
        listed = {"items": [{"metadata": {"name": "m3", "uid": uid}} for uid in self.uids]}
        code, document = (self.lists, listed) if method == "GET" else (self.code, {"message": "no"})
        return SimpleNamespace(status=code, response=SimpleNamespace(data=json.dumps(document).encode()))


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


LIST = ("GET", "m3deployments?metadata.name=m3")
CASES = [
    ("it is gone", StatusServer(404), GoneError, [LIST]),
    ("its kind has no status, or had none", StatusServer(404, "uid-m3"), NotFoundError, [LIST]),
    ("its kind is not served now", StatusServer(404, lists=404), NotFoundError, [LIST]),
    ("it went before somebody looked", StatusServer(409), GoneError, [LIST]),
    ("another has its name", StatusServer(409, "uid-2"), GoneError, [LIST]),
    ("somebody was quicker", StatusServer(409, "uid-m3"), ConflictError, [LIST]),
]


@pytest.mark.parametrize(("server", "error", "looks"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
async def test_a_status_that_is_not_written_says_whether_its_object_is_there(
    executor: ThreadPoolExecutor, server: StatusServer, error: type[Exception], looks: list[tuple[str, str]]
) -> None:
    with pytest.raises(error) as raised:
        await Cluster(cast(ApiClient, server), executor).write_status(deployment(), {"replicas": 1})
    assert getattr(raised.value, "uid", "uid-m3") == "uid-m3"
    assert server.asked == [("PATCH", "status"), *looks]
