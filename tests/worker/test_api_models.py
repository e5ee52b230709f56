"""`/v1/models`, read by both SDKs: context, tiers, and a model that is not there."""

import anthropic
import httpx
import openai
import pytest

from m3_fakes.worker import FakeWorker
from m3_worker.api.models import context_tiers

pytestmark = pytest.mark.either_way


def test_both_sdks_list_and_find_the_model(worker: FakeWorker) -> None:
    with openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["fake"]
        found = client.models.retrieve("fake")
        assert (found.id, found.object) == ("fake", "model")
        assert found.model_dump()["max_model_len"] == 256
        with pytest.raises(openai.NotFoundError, match="fake"):
            client.models.retrieve("other")
    with anthropic.Anthropic(base_url=worker.url, api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["fake"]
        same = client.models.retrieve("fake")
        assert (same.id, same.type, same.display_name) == ("fake", "model", "fake")
        assert same.created_at.timestamp() == found.created
        with pytest.raises(anthropic.NotFoundError, match="fake"):
            client.models.retrieve("other")


@pytest.mark.worker_only("the router's models are as old as the router")
def test_a_model_was_created_when_the_worker_had_loaded_it(client: httpx.Client) -> None:
    assert client.get("/v1/models/fake").json()["created"] == 1_790_000_000


def test_a_context_reaches_the_long_tier_beyond_512_000_tokens_of_input() -> None:
    assert context_tiers(256) == [{"name": "standard", "max_input_tokens": 255}]
    assert context_tiers(512_001) == [{"name": "standard", "max_input_tokens": 512_000}]
    assert context_tiers(1_048_576) == [
        {"name": "standard", "max_input_tokens": 512_000},
        {"name": "long", "max_input_tokens": 1_048_575},
    ]
