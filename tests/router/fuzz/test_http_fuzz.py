"""Twenty seconds of hostile clients and a hostile worker against a router; `make fuzz-router` takes ten minutes.

The seed is fixed, so every run sends the same cases; what comes back when is the machine's business.
"""

import asyncio

from m3_fuzz.answers import read_answers
from m3_fuzz.campaign import campaign
from m3_fuzz.cases import make_case
from m3_fuzz.corpus import REQUESTS
from m3_fuzz.hostile import workers
from m3_fuzz.process import HEAD_SECONDS, running_router

SEED, SECONDS = 20, 20.0
MAX_GROWTH_BYTES = 24 * 2**20  # while caches and tables fill; a longer campaign asks for a flat line


async def test_hostile_clients_and_workers_neither_hang_nor_crash_nor_fatten_a_router() -> None:
    async with workers(SEED) as (good, hostile), running_router(good.port, hostile.port) as router:
        findings = await campaign(router, SEED, SECONDS)
        assert hostile.answers > 0, "the hostile worker was never asked"
    assert findings.faults == [], findings.summary
    assert findings.cases > 200
    assert {200, 400, 408, 431} <= findings.statuses.keys(), findings.summary
    assert findings.growth_bytes < MAX_GROWTH_BYTES, findings.summary


def test_a_case_is_told_by_its_seed_and_number_alone() -> None:
    assert make_case(7, 1, REQUESTS) == make_case(7, 1, REQUESTS)
    assert len({make_case(number, 1, REQUESTS).data for number in range(100)}) > 60


def test_the_reader_of_answers_tells_whole_cut_and_false_ones_apart() -> None:
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    assert read_answers(whole * 2).statuses == (200, 200)
    assert not read_answers(whole).is_last_cut
    assert read_answers(whole[:-1]).is_last_cut
    assert read_answers(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n").is_last_cut
    assert read_answers(whole + b"garbage\r\n\r\n").fault
    assert read_answers(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n").fault
    assert read_answers(b"").statuses == ()


async def test_a_head_that_drips_has_no_more_time_than_another() -> None:
    """A byte every tenth of a second never stalls; the limit is on the whole head."""
    async with workers(SEED) as (good, hostile), running_router(good.port, hostile.port) as router:
        reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
        answered = asyncio.create_task(reader.read())
        try:
            writer.write(b"GET /v1/models HTTP/1.1\r\nX-Drip: ")
            async with asyncio.timeout(HEAD_SECONDS + 20):
                while not answered.done():
                    writer.write(b"y")
                    await asyncio.sleep(0.1)
            assert (await answered).startswith(b"HTTP/1.1 408")
        finally:
            writer.transport.abort()
            answered.cancel()
