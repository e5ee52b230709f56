"""`/v1/embeddings`, with OpenAI's SDK: vectors worked out by hand, because the simulated model counts bytes."""

import base64
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from m3_fakes.http import wait_until
from m3_fakes.worker import FakeWorker, running_simulation
from m3_routed import reached
from m3_worker.config import WorkerSettings

pytestmark = pytest.mark.either_way

CONTEXT = 4096
SETTINGS = WorkerSettings(
    simulate=True, simulate_token_seconds=0, simulate_prefill_tokens_per_second=1e9, max_context_tokens=CONTEXT
)


@pytest.fixture(scope="module")
def url(way: str) -> Iterator[str]:
    with reached(way, simulation, "simulated", context_tokens=CONTEXT) as url:
        yield url


@contextmanager
def simulation() -> Iterator[str]:
    with running_simulation(SETTINGS) as (_, url):
        yield url


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def embed(sdk: openai.OpenAI, texts: Any, **fields: Any) -> list[list[float]]:
    made = sdk.embeddings.create(model="simulated", input=texts, **{"encoding_format": "float", **fields})
    assert [one.index for one in made.data] == list(range(len(made.data)))
    return [one.embedding for one in made.data]


def one_hot(values: dict[int, float]) -> list[float]:
    return [values.get(place, 0.0) for place in range(64)]


def test_a_vector_is_pooled_over_all_tokens_or_taken_from_the_last(sdk: openai.OpenAI) -> None:
    assert embed(sdk, "A") == [one_hot({1: 1.0})]
    assert embed(sdk, "AAB") == [pytest.approx(one_hot({1: 2 / math.sqrt(5), 2: 1 / math.sqrt(5)}))]
    assert embed(sdk, "AAB", extra_body={"pooling": "last"}) == [one_hot({2: 1.0})]


def test_many_texts_keep_their_order_and_their_usage_adds_up(sdk: openai.OpenAI) -> None:
    texts = [chr(65 + number % 26) for number in range(50)]
    assert embed(sdk, texts) == [one_hot({1 + number % 26: 1.0}) for number in range(50)]
    made = sdk.embeddings.create(model="simulated", input=["abc", "de"])
    assert (made.object, made.model) == ("list", "simulated")
    assert (made.usage.prompt_tokens, made.usage.total_tokens) == (5, 5)


def test_token_ids_are_texts_too(sdk: openai.OpenAI) -> None:
    assert embed(sdk, [65, 65]) == embed(sdk, "AA")
    assert embed(sdk, [[65], [66]]) == embed(sdk, ["A", "B"])


def test_base64_is_the_same_numbers_in_32_bits(sdk: openai.OpenAI, url: str) -> None:
    body = {"model": "simulated", "input": "AAB", "encoding_format": "base64"}
    data = httpx.post(f"{url}/v1/embeddings", json=body, timeout=10).json()["data"][0]["embedding"]
    assert list(struct.unpack("<64f", base64.b64decode(data))) == pytest.approx(embed(sdk, "AAB")[0])
    assert sdk.embeddings.create(model="simulated", input="AAB").data[0].embedding == pytest.approx(
        embed(sdk, "AAB")[0]
    ), "the SDK asks for base64 by itself"


def test_fewer_dimensions_are_of_length_1_again(sdk: openai.OpenAI) -> None:
    assert embed(sdk, "AAB", dimensions=2) == [[0.0, 1.0]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": None}, "input has null: must be a string, a list of token ids, or a list of these"),
        ({"input": ""}, "input is empty: it must have at least one token"),
        ({"input": []}, "input is empty"),
        ({"input": ["a", 5]}, "input has 5: must be a string"),
        ({"input": [5, "a"]}, 'input has [5, "a"]'),
        ({"input": [10**6]}, "input has the token id 1000000"),
        ({"input": ["a"] * 2049}, "input has 2049 texts: at most 2048"),
        ({"input": "a" * 4097}, "input has a text of 4097 tokens: the context holds 4096"),
        ({"dimensions": 65}, "dimensions is 65: the model's vectors have 64"),
        ({"dimensions": 0}, "dimensions is 0"),
        ({"encoding_format": "int8"}, "must be 'float' or 'base64'"),
        ({"pooling": "max"}, "must be 'mean' or 'last'"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(url: str, fields: dict[str, Any], message: str) -> None:
    body = {"model": "simulated", "input": "a", **fields}
    response = httpx.post(f"{url}/v1/embeddings", json=body, timeout=10)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


@pytest.mark.worker_only("it looks into the engine")
def test_nothing_stays_in_the_engine_when_the_client_leaves(worker: FakeWorker) -> None:
    worker.hold_steps()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{worker.url}/v1/embeddings", json={"model": "fake", "input": ["a"] * 20}, timeout=0.2)
    wait_until(lambda: worker.engine.in_flight_count == 0)
    worker.reset()
    wait_until(lambda: worker.engine.cache_used_ratio == 0)
