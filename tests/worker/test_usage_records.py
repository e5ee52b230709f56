"""What a worker tells of the requests it had: finished, aborted in prefill, cut off in decode, sent twice."""

import json
import socket
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from m3_fakes.http import wait_until
from m3_fakes.worker import FakeWorker
from m3_worker.usage_records import UsageRecords, UsedTokens


def send(worker: FakeWorker, request_id: str, attempt: str = "", **fields: Any) -> socket.socket:
    """A streamed request on a connection of its own, sent and not waited for."""
    fields = {"model": "fake", "prompt": [1] * 200, "max_tokens": 50, "stream": True, **fields}
    body = json.dumps(fields).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: worker\r\nx-request-id: {request_id}\r\n"
        f"x-m3-attempt: {attempt}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", worker.port), timeout=10)
    connection.sendall(head.encode() + body)
    return connection


def told(client: httpx.Client, request_id: str, **query: Any) -> list[dict[str, Any]]:
    answer = client.get(f"/internal/usage/{request_id}", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.json()["request_id"] == request_id
    return answer.json()["records"]


def test_a_finished_request_is_told_of_as_its_answer_did(client: httpx.Client) -> None:
    body = {"model": "fake", "prompt": [7] * 10, "max_tokens": 3}
    usage = client.post("/v1/completions", json=body, headers={"x-request-id": "done"}).json()["usage"]
    assert told(client, "done") == [
        {
            "attempt": "",
            "state": "ended",
            "prompt_tokens": usage["prompt_tokens"],
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "completion_tokens": usage["completion_tokens"],
        }
    ]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (10, 3)


def test_a_prompt_counts_once_however_many_answers_it_gets(client: httpx.Client) -> None:
    body = {"model": "fake", "prompt": [9] * 10, "max_tokens": 3, "n": 2}
    client.post("/v1/completions", json=body, headers={"x-request-id": "two"})
    (record,) = told(client, "two")
    assert (record["prompt_tokens"], record["completion_tokens"]) == (10, 6)


def test_embeddings_count_what_they_computed(client: httpx.Client) -> None:
    body = {"model": "fake", "input": [[1, 2, 3], [4, 5]]}
    answer = client.post("/v1/embeddings", json=body, headers={"x-request-id": "vectors"})
    (record,) = told(client, "vectors")
    assert (record["prompt_tokens"], record["completion_tokens"]) == (5 if answer.status_code == 200 else 0, 0)
    assert answer.status_code in (200, 501)


def test_who_leaves_in_prefill_has_used_what_was_computed_until_then(worker: FakeWorker, client: httpx.Client) -> None:
    gate = worker.hold_steps()
    steps = worker.engine.counters.steps
    connection = send(worker, "prefill", prompt=[3] * 200)
    gate.release(2)  # two chunks of 32 tokens
    wait_until(lambda: worker.engine.counters.steps == steps + 2)
    (running,) = told(client, "prefill")
    assert running["state"] == "running"
    connection.close()
    wait_until(lambda: worker.engine.in_flight_count == 0)
    gate.release()  # the step it is in
    (record,) = told(client, "prefill", wait_seconds=5)
    assert record["state"] == "ended"
    assert record["completion_tokens"] == 0
    assert record["prompt_tokens"] in (64, 96)  # the third step was begun, or it was not


def test_who_leaves_while_waiting_has_used_nothing(worker: FakeWorker, client: httpx.Client) -> None:
    gate = worker.hold_steps()
    running = [send(worker, f"running-{number}") for number in range(8)]
    wait_until(lambda: worker.engine.running_count >= 1)
    waiting = send(worker, "waiting")
    wait_until(lambda: worker.engine.in_flight_count == 9)
    waiting.close()
    wait_until(lambda: worker.engine.in_flight_count == 8)
    gate.release(3)
    (record,) = told(client, "waiting", wait_seconds=5)
    assert (record["state"], record["prompt_tokens"], record["completion_tokens"]) == ("ended", 0, 0)
    for connection in running:
        connection.close()
    wait_until(lambda: worker.engine.in_flight_count == 0)


def test_who_leaves_in_an_answer_has_used_the_prompt_and_what_was_sent(
    worker: FakeWorker, client: httpx.Client
) -> None:
    gate = worker.hold_steps()
    connection = send(worker, "answer", prompt=[5, 6, 7], return_token_ids=True)
    for _ in range(4):  # one by one, so that each is an event
        gate.release()
        while b"data:" not in connection.recv(65536):
            pass
    connection.close()
    (record,) = told(client, "answer", wait_seconds=5)
    gate.release()
    assert (record["state"], record["prompt_tokens"], record["completion_tokens"]) == ("ended", 3, 4)


def test_attempts_under_one_id_are_told_apart(worker: FakeWorker, client: httpx.Client) -> None:
    body = {"model": "fake", "prompt": [1, 2], "max_tokens": 1}
    for attempt, tokens in (("a-1-1", 1), ("a-1-2", 2)):
        headers = {"x-request-id": "same", "x-m3-attempt": attempt}
        client.post("/v1/completions", json={**body, "max_tokens": tokens}, headers=headers)
    assert [record["attempt"] for record in told(client, "same")] == ["a-1-1", "a-1-2"]
    (second,) = told(client, "same", attempt="a-1-2")
    assert second["completion_tokens"] == 2


def test_an_id_with_any_visible_character_is_found(client: httpx.Client) -> None:
    client.post("/v1/completions", json={"model": "fake", "prompt": [1]}, headers={"x-request-id": "a/b?c%d#e"})
    answer = client.get("/internal/usage/a%2Fb%3Fc%25d%23e")
    assert answer.json()["request_id"] == "a/b?c%d#e"


def test_an_unknown_request_is_404(client: httpx.Client) -> None:
    assert client.get("/internal/usage/nobody").json()["error"]["code"] == "unknown_request"


@pytest.mark.parametrize("text", ["-1", "6", "nan", "soon"])
def test_a_wait_out_of_bounds_is_400(client: httpx.Client, text: str) -> None:
    answer = client.get("/internal/usage/nobody", params={"wait_seconds": text})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "wait_seconds")


def test_a_refused_request_has_used_nothing(client: httpx.Client) -> None:
    client.post("/v1/completions", json={"model": "fake"}, headers={"x-request-id": "refused"})
    (record,) = told(client, "refused")
    assert (record["state"], record["prompt_tokens"], record["completion_tokens"]) == ("ended", 0, 0)


def test_only_the_newest_are_kept() -> None:
    records = UsageRecords(max_records=2)
    first, again = records.begin("r", "1"), records.begin("r", "1")
    records.begin("s", "")
    assert records.find("r", None) == [again]
    assert first is not again
    records.begin("t", "")
    assert records.find("r", None) == []
    assert [len(records.find(name, None)) for name in ("s", "t")] == [1, 1]


def test_names_too_long_to_keep_are_not_kept() -> None:
    records = UsageRecords()
    records.begin("r" * 129, "")
    records.begin("r", "a" * 129)
    assert records.find("r" * 129, None) == records.find("r", None) == []


def test_a_record_ends_only_when_the_engine_has_told_all() -> None:
    record = UsageRecords().begin("r", "")
    answer = SimpleNamespace(prompt_token_ids=[1, 2, 3], prefilled_tokens=0, cached_tokens=0, completion_tokens=0)
    record.add(answer)
    record.hold()
    record.leave()
    assert not record.is_ended
    answer.prefilled_tokens = 2
    record.release()
    answer.prefilled_tokens = 3
    assert record.is_ended
    assert record.used == UsedTokens(2, 0, 0)
