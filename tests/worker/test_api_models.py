"""`/v1/models`, read by both SDKs: context, tiers, and a model that is not there."""

import anthropic
import openai
import pytest

from m3_fakes.worker import FakeWorker
from m3_worker.api.models import context_tiers


def test_both_sdks_list_and_find_the_model(worker: FakeWorker) -> None:
    with openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["fake"]
        found = client.models.retrieve("fake")
        assert (found.id, found.object, found.created) == ("fake", "model", 1_790_000_000)
        assert found.model_dump()["max_model_len"] == 256
        with pytest.raises(openai.NotFoundError, match='this worker serves "fake"'):
            client.models.retrieve("other")
    with anthropic.Anthropic(base_url=worker.url, api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["fake"]
        assert client.models.retrieve("fake").created_at.year == 2026


def test_a_context_reaches_the_long_tier_beyond_512_000_tokens_of_input() -> None:
    assert context_tiers(256) == [{"name": "standard", "max_input_tokens": 255}]
    assert context_tiers(512_001) == [{"name": "standard", "max_input_tokens": 512_000}]
    assert context_tiers(1_048_576) == [
        {"name": "standard", "max_input_tokens": 512_000},
        {"name": "long", "max_input_tokens": 1_048_575},
    ]
