"""The admin port of several processes, before processes that a test scripts."""

from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
import pytest

from m3_console.scene import ADMIN_DIGEST, ADMIN_KEY
from m3_router.admin import Access
from m3_router.processes.front import front_app

KEY = {"authorization": f"Bearer {ADMIN_KEY}"}


@dataclass
class Scripted:
    """One process: what it answers at each path, and what it was asked. None: it does not answer."""

    index: int
    answers: dict[str, httpx.Response | None]
    is_running: bool = True
    restarts: int = 0
    asked: list[httpx.Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client = httpx.AsyncClient(transport=httpx.MockTransport(self._answer), base_url="http://process")

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers.get(request.url.path)
        if answer is None:
            raise httpx.ConnectError("nobody is there")
        stream = httpx.ByteStream(answer.content)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=stream)


def client_of(
    *processes: Scripted, peer: str = "127.0.0.1", shares_redis: bool = False, is_draining: Callable[[], bool] = bool
) -> httpx.AsyncClient:
    app = front_app(processes, access=Access(ADMIN_DIGEST), shares_redis=shares_redis, is_draining=is_draining)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(peer, 4711)), base_url="http://127.0.0.1:9090")


def of(path: str, *answers: httpx.Response | None) -> list[Scripted]:
    return [Scripted(index, {path: answer}) for index, answer in enumerate(answers)]


READY = httpx.Response(200, json={"status": "ok"})
NOT_READY = httpx.Response(503, json={"status": "no worker is ready"})


@pytest.mark.parametrize(
    ("answers", "status", "said"),
    [
        ((READY, NOT_READY), 200, "ok"),
        ((None, READY), 200, "ok"),
        ((NOT_READY, None), 503, "process 0: no worker is ready"),
        ((None, None), 503, "no process answers"),
    ],
)
async def test_a_router_is_ready_while_one_of_its_processes_is(
    answers: tuple[httpx.Response | None, ...], status: int, said: str
) -> None:
    async with client_of(*of("/readyz", *answers)) as client:
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (status, said)


async def test_a_router_that_drains_is_not_ready_and_still_well() -> None:
    async with client_of(*of("/readyz", READY), is_draining=lambda: True) as client:
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("path", ["/workers", "/api/state", "/api/usage", "/api/usage.csv", "/ledger", "/console"])
async def test_what_holds_data_is_not_even_passed_on_for_a_stranger(path: str) -> None:
    (process,) = of(path, httpx.Response(200, json={}))
    async with client_of(process, peer="10.0.0.9") as client:
        assert (await client.get(path)).status_code == 401
        assert (await client.get(path, headers={**KEY, "authorization": "Bearer wrong"})).status_code == 401
    assert process.asked == []


async def test_a_path_that_is_written_oddly_opens_nothing_and_is_passed_on_as_it_came() -> None:
    (process,) = of("/", httpx.Response(200))
    async with client_of(process, peer="10.0.0.9") as client:
        for path in ("//workers/ledger", "/%2fledger", "/console/a/b"):
            odd = client.base_url.copy_with(raw_path=path.encode())
            assert (await client.get(odd)).status_code == 401
            await client.get(odd, headers=KEY)
    assert [asked.url.raw_path for asked in process.asked] == [
        b"//workers/ledger", b"/%2fledger", b"/console/a/b",
    ]  # fmt: skip


async def test_an_act_of_a_stranger_reaches_nobody() -> None:
    (process,) = of("/api/acts/reload", httpx.Response(200, json={"message": "done"}))
    async with client_of(process, peer="10.0.0.9") as client:
        assert (await client.post("/api/acts/reload", json={})).status_code == 401
    assert process.asked == []


async def test_a_process_is_told_who_asks_and_nobody_else_can_say_so() -> None:
    (process,) = of("/workers", httpx.Response(200, json=[]))
    async with client_of(process, peer="10.0.0.9") as client:
        answer = await client.get("/workers?process=0&a=1&a=2", headers={**KEY, "x-m3-peer": "127.0.0.1"})
    assert answer.status_code == 200
    (asked,) = process.asked
    assert asked.headers.get_list("x-m3-peer") == ["10.0.0.9"]
    assert asked.headers["authorization"] == KEY["authorization"]
    assert asked.headers["host"] == "127.0.0.1:9090"
    assert asked.url.query == b"a=1&a=2"


async def test_all_else_goes_to_the_process_that_is_named_or_to_the_first_that_runs() -> None:
    processes = of("/workers", *(httpx.Response(200, json=[number]) for number in range(3)))
    processes[0].is_running = False
    async with client_of(*processes) as client:
        assert (await client.get("/workers")).json() == [1]
        assert (await client.get("/workers", params={"process": 2})).json() == [2]
        for unknown in ("3", "-1", "x", ""):
            assert (await client.get("/workers", params={"process": unknown})).status_code == 404


async def test_an_act_that_one_process_refuses_says_which() -> None:
    done = httpx.Response(200, json={"message": "Done."})
    refused = httpx.Response(409, json={"error": "Not now."})
    async with client_of(*of("/api/acts/reload", done, refused)) as client:
        answer = await client.post("/api/acts/reload", json={})
    assert (answer.status_code, answer.json()) == (409, {"error": "Process 1: Not now."})


async def test_an_act_that_is_done_everywhere_says_what_each_said_once() -> None:
    processes = of("/api/acts/reload", *[httpx.Response(200, json={"message": "Done."})] * 3)
    async with client_of(*processes) as client:
        answer = await client.post("/api/acts/reload", json={"a": "b"})
    assert answer.json() == {"message": "Done. (3 processes)"}
    assert [process.asked[0].content for process in processes] == [b'{"a":"b"}'] * 3


async def test_metrics_are_of_all_that_answer_and_say_who_does_not() -> None:
    text = "# HELP a_total A.\n# TYPE a_total counter\na_total 1.0\n"
    processes = of("/metrics", httpx.Response(200, text=text), None)
    processes[1].is_running = False
    processes[1].restarts = 2
    async with client_of(*processes, peer="10.0.0.9") as client:
        lines = (await client.get("/metrics")).text.splitlines()
    assert 'a_total{process="0"} 1.0' in lines
    assert 'm3_router_process_up{process="0"} 1.0' in lines
    assert 'm3_router_process_up{process="1"} 0.0' in lines
    assert 'm3_router_process_restarts_total{process="1"} 2.0' in lines


def usage_of(requests: int, tenant: str = "acme") -> httpx.Response:
    row = {
        "tenant": tenant, "day": "2026-11-21", "model": "m", "service_tier": "standard", "context_tier": "standard",
        "requests": requests, "input_tokens": 10 * requests, "cost_nanousd": 7 * requests,
    }  # fmt: skip
    return httpx.Response(200, json={"object": "usage", "scope": "replica", "rows": [row]})


async def test_usage_is_the_sum_of_all_processes_where_each_knows_its_own() -> None:
    processes = of("/api/usage", usage_of(1), usage_of(2), usage_of(4, "zeta"))
    async with client_of(*processes) as client:
        usage = (await client.get("/api/usage?from=2026-11-01")).json()
    assert (usage["requests"], usage["cost_nanousd"], usage["cost_usd"]) == (7, 49, "0.000000049")
    rows = [(row["tenant"], row["requests"], row["input_tokens"]) for row in usage["rows"]]
    assert rows == [("acme", 3, 30), ("zeta", 4, 40)]
    assert processes[2].asked[0].url.query == b"from=2026-11-01"


async def test_where_redis_is_shared_one_process_knows_the_usage_of_all() -> None:
    processes = of("/api/usage", usage_of(5), usage_of(5))
    async with client_of(*processes, shares_redis=True) as client:
        assert (await client.get("/api/usage")).json()["rows"][0]["requests"] == 5
    assert processes[1].asked == []


async def test_usage_without_one_of_the_processes_is_no_usage() -> None:
    async with client_of(*of("/api/usage", usage_of(1), None)) as client:
        answer = await client.get("/api/usage")
    assert (answer.status_code, answer.json()) == (503, {"error": "Process 1 does not answer."})


async def test_a_question_that_each_refuses_is_refused_in_its_words() -> None:
    refused = httpx.Response(400, json={"error": "from: 'x' is not a day such as 2026-11-21."})
    for path in ("/api/usage", "/api/usage.csv"):
        async with client_of(*of(path, refused, refused)) as client:
            answer = await client.get(path, params={"from": "x"})
        assert (answer.status_code, answer.json()) == (400, refused.json())


async def test_the_tables_of_all_processes_are_one_table() -> None:
    head = {"content-type": "text/csv; charset=utf-8", "content-disposition": "attachment"}
    tables = [httpx.Response(200, headers=head, content=b"a,b\r\n" + rows) for rows in (b"1,2\r\n", b"", b"3,4\r\n")]
    async with client_of(*of("/api/usage.csv", *tables)) as client:
        answer = await client.get("/api/usage.csv")
    assert answer.content == b"a,b\r\n1,2\r\n3,4\r\n"
    assert answer.headers["content-disposition"] == "attachment"
