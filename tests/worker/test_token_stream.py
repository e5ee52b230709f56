"""The stream of one request's tokens: nothing is lost, whoever is late, and whoever gives up."""

import asyncio

import pytest

from m3_worker.scheduling.request import SampledToken, TokenOutput
from m3_worker.token_stream import EngineFailedError, TokenStream


def output(token_id: int) -> TokenOutput:
    return TokenOutput("r", SampledToken(token_id), None)


async def test_what_came_before_anybody_asked_is_given_at_once_and_in_order() -> None:
    stream = TokenStream()
    stream.push(output(1))
    stream.push(output(2))
    assert await stream.take() == [output(1), output(2)]


async def test_a_reader_that_waits_gets_all_that_came_until_it_runs() -> None:
    stream = TokenStream()
    reader = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    assert not reader.done()
    stream.push(output(1))
    stream.push(output(2))
    assert await reader == [output(1), output(2)]


async def test_a_reader_that_was_cancelled_takes_nothing_with_it() -> None:
    stream = TokenStream()
    reader = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    stream.push(output(1))
    assert await stream.take() == [output(1)]


async def test_a_failure_ends_the_wait_and_every_later_one() -> None:
    stream = TokenStream()
    reader = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    stream.fail("the device is gone")
    for waiting in (reader, stream.take()):
        with pytest.raises(EngineFailedError, match="the device is gone"):
            await waiting
