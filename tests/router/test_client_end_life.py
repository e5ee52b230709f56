"""The client's end on a fake transport and clock: clients that leave, time-outs, back-pressure, draining."""

import json

import pytest

from m3_mock.client_bench import GET, LIMITS, POST, FakeApplication, FakeTransport, bench, statuses
from m3_router.http.client_end import LINGER_SECONDS, ClientConnection


@pytest.mark.parametrize("holds", [True, False])
def test_a_client_that_goes_is_told_to_the_exchange_once(holds: bool) -> None:
    one = bench(FakeApplication(holds=holds))
    one.feed(POST)
    one.connection.connection_lost(None)
    assert one.application.exchange.events == (["lost"] if holds else [])
    assert one.connections.all == set()
    assert one.connections.buffered_bytes == 0
    one.connection.respond_json(b"late")
    one.connection.write(b"late")
    one.connection.end(b"late")
    assert b"late" not in one.transport.written


def test_a_half_closed_client_with_a_request_running_is_gone() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(POST)
    one.connection.eof_received()
    assert one.transport.is_aborted


def test_a_client_that_is_lost_while_it_sends_leaves_nothing_behind() -> None:
    one = bench()
    one.feed(POST[:-2])
    assert one.connections.buffered_bytes == 3
    one.connection.connection_lost(None)
    assert one.connections.buffered_bytes == 0


def test_back_pressure_reaches_the_exchange() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(POST)
    one.connection.pause_writing()
    assert one.connection.is_write_paused
    one.connection.resume_writing()
    assert one.application.exchange.events == ["paused", "resumed"]


def test_an_idle_connection_is_closed_without_a_word_and_a_slow_request_with_408() -> None:
    new = bench()
    new.tick(9.9)
    assert not new.transport.is_closed
    new.tick(0.2)
    assert new.transport.is_closed
    assert new.transport.written == b""
    idle = bench()
    idle.feed(GET)
    idle.tick(74)
    assert not idle.transport.is_closed
    idle.tick(2)
    assert idle.transport.is_closed
    for start, seconds, what in ((GET[:10], 10, b"headers"), (POST[:-2], 30, b"body")):
        slow = bench()
        slow.feed(start)
        slow.tick(seconds - 1)
        assert slow.transport.written == b""
        slow.tick(2)
        assert statuses(slow.transport.written) == [408]
        assert what in slow.transport.written
        slow.tick(LINGER_SECONDS + 1)
        assert slow.transport.is_aborted


def test_a_body_that_trickles_is_not_stalled() -> None:
    one = bench()
    one.feed(POST[:-5])
    for byte in b"hell":
        one.tick(29)
        one.feed(bytes([byte]))
    assert statuses(one.feed(b"o")) == [200]


def test_time_belongs_to_the_exchange_while_it_lasts() -> None:
    one = bench(FakeApplication(holds=True))
    one.feed(POST)
    one.tick(10_000)
    assert one.application.exchange.events == ["tick"]
    assert not one.transport.is_closed


def test_draining_closes_idle_connections_and_the_others_after_their_answer() -> None:
    idle, busy = bench(), bench(FakeApplication(holds=True))
    idle.feed(GET)
    busy.feed(GET)
    idle.connections.drain()
    busy.connections.drain()
    assert idle.transport.is_closed
    assert not busy.transport.is_closed
    busy.connection.respond_json(b"{}")
    assert b"connection: close" in busy.transport.written
    assert busy.transport.is_closed


def test_one_connection_too_many_is_told_so() -> None:
    one = bench(limits=LIMITS.model_copy(update={"connections": 1}))
    other, transport = ClientConnection(one.application, one.connections, one.loop), FakeTransport()
    other.connection_made(transport)
    assert statuses(transport.written) == [503]
    assert json.loads(transport.written.split(b"\r\n\r\n")[1])["error"]["message"].startswith("The router serves 1")
