"""What a router counts, read from its admin port by Prometheus' own parser, and the rule of the first bytes."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from m3_console.scene import bill
from m3_mock import MockEngine
from m3_mock.running import Running, StartRouter, eventually
from m3_redis import RedisServer, running_redis
from m3_router.config import LaneSettings
from m3_router.telemetry.attainment import Attainment, came_in_time

DOCUMENT = Path(__file__).parents[2] / "docs" / "router.md"


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


async def metrics_of(running: Running) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by name of the sample, and by the values of its labels in the order of their names."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families((await running.admin.get("/metrics")).text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


async def test_a_request_is_seen_in_the_counts_of_the_parts_that_it_passed(
    start_router: StartRouter, engine: MockEngine, tmp_path: Path
) -> None:
    running = await start_router([engine], ledger={"directory": str(tmp_path)})
    assert (await running.chat(messages=[{"role": "user", "content": "a word " * 1000}])).status_code == 200
    found = await metrics_of(running)
    assert found["m3_router_affinity_blocks"][("mock",)] > 0
    assert found["m3_router_affinity_slots"][("mock",)] == 1
    assert found["m3_router_journal_segments"][()] == 1
    assert found["m3_router_journal_lost_records_total"][()] == 0
    assert found["m3_router_journal_open_bills"][()] == 0
    assert found["m3_router_ledger_pending_bills"][()] == 0
    assert found["m3_router_first_byte_target_requests_total"][("standard", "true", "standard")] == 1
    assert found["m3_router_first_byte_target_requests_total"][("standard", "false", "standard")] == 0
    assert found["m3_router_first_byte_target_seconds"][("priority",)] == 5.0
    assert "m3_router_redis_shared" not in found


async def test_a_refusal_by_a_limit_counts_under_its_name(start_router: StartRouter, engine: MockEngine) -> None:
    digest = hashlib.sha256(b"key").hexdigest()
    auth: dict[str, Any] = {
        "plans": {"small": {"requestsPerMinute": 1}},
        "tenants": [{"name": "ada", "plan": "small"}],
        "keys": [{"tenant": "ada", "sha256": digest}],
    }
    running = await start_router([engine], auth=auth)
    running.http.headers["authorization"] = "Bearer key"
    statuses = sorted([(await running.chat()).status_code for _ in range(3)])
    found = await metrics_of(running)
    refused = statuses.count(429)
    assert refused >= 1  # at a full minute two of the three may pass
    assert found["m3_router_quota_refusals_total"] == {("requestsPerMinute",): refused}


async def test_what_replicas_share_is_counted_where_there_is_redis(
    start_router: StartRouter, engine: MockEngine, redis_server: RedisServer, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"redis": {"url": redis_server.url}, "ledger": {"directory": str(tmp_path)}}
    running = await start_router([engine], **settings)
    assert (await running.chat(messages=[{"role": "user", "content": "a word " * 1000}])).status_code == 200
    sharing = running.router._sharing
    assert sharing is not None
    stream = sharing.ledger_stream
    assert stream is not None
    await eventually(lambda: stream.sent_bills == 1, "the bill is in Redis")
    found = await metrics_of(running)
    assert found["m3_router_redis_shared"][()] == 1
    assert found["m3_router_replicas"][()] == 1
    assert found["m3_router_redis_calls_total"][("replicas.beat", "answered")] > 0
    assert found["m3_router_redis_call_seconds_total"][("replicas.beat",)] > 0
    assert found["m3_router_ledger_stream_bills_total"][()] == 1
    assert found["m3_router_ledger_stream_waiting_bills"][()] == 0
    assert found["m3_router_affinity_log_entries_total"][("dropped",)] == 0
    assert found["m3_router_shared_malformed_total"] == {("report",): 0, ("affinity",): 0, ("ledger",): 0}


async def test_every_family_is_in_the_documentation(
    start_router: StartRouter, engine: MockEngine, redis_server: RedisServer, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "redis": {"url": redis_server.url},
        "ledger": {"directory": str(tmp_path)},
        "moderation": {"url": "http://127.0.0.1:1/check", "onFailure": "allow"},
        "tracing": {"endpoint": "http://127.0.0.1:1"},
    }
    running = await start_router([engine], **settings)
    text = (await running.admin.get("/metrics")).text
    names = {line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    document = DOCUMENT.read_text()
    assert sorted(name for name in names if f"`{name.removeprefix('m3_router_')}`" not in document) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"first_byte_ms": 5000.0}, True),
        ({"first_byte_ms": 5000.1}, False),
        ({"first_byte_ms": 1.0, "outcome": "worker_error"}, False),
        ({"first_byte_ms": None, "outcome": "worker_error"}, False),
        ({"first_byte_ms": None, "outcome": "client_gone"}, None),
        ({"first_byte_ms": 1.0, "outcome": "client_gone"}, True),
        ({"first_byte_ms": None, "outcome": "rejected"}, None),
        ({"first_byte_ms": 1.0, "worker": ""}, None),
    ],
)
def test_a_first_byte_is_in_time_or_not_unless_nobody_can_say(fields: dict[str, Any], expected: bool | None) -> None:
    assert came_in_time(bill(**fields), 5000.0) is expected


def test_attainment_counts_by_lane_and_leaves_out_what_has_no_target() -> None:
    attainment = Attainment(LaneSettings())
    attainment.read(
        [
            bill(service_tier="priority", first_byte_ms=4999.0),
            bill(service_tier="priority", first_byte_ms=5001.0),
            bill(service_tier="standard", context_tier="long", first_byte_ms=5001.0),
            bill(service_tier="batch", first_byte_ms=1.0),
            bill(service_tier=None, first_byte_ms=1.0),
        ]
    )
    counted = {lane: (one.requests, one.in_time) for lane, one in attainment.lanes.items()}
    assert counted == {
        ("priority", "standard"): (2, 1),
        ("priority", "long"): (0, 0),
        ("standard", "standard"): (0, 0),
        ("standard", "long"): (1, 1),
    }
