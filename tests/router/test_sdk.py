"""The stock openai client against the router."""

import openai
import pytest

from m3_mock import MockEngine
from m3_mock.running import Running, StartRouter

MESSAGES = [{"role": "user", "content": "hi"}]


def client_of(router: Running, key: str = "any") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://{router.router.address}/v1", api_key=key, max_retries=0)


async def test_chat_completions_models_and_streams(start_router: StartRouter, engine: MockEngine) -> None:
    router = await start_router([engine])
    async with client_of(router) as client:
        whole = await client.chat.completions.create(model="mock", messages=MESSAGES)
        assert whole.choices[0].message.content == "Hi."
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 3
        text = ""
        async for chunk in await client.chat.completions.create(model="mock", messages=MESSAGES, stream=True):
            assert chunk.usage is None
            text += chunk.choices[0].delta.content or ""
        assert text == " t1 t2 t3"
        assert (await client.completions.create(model="mock", prompt=[1, 2])).choices[0].text == "Hi."
        assert [model.id async for model in client.models.list()] == ["mock"]
        assert (await client.models.retrieve("mock")).id == "mock"
    assert {bill["outcome"] for bill in await router.ledger()} == {"ok"}


async def test_errors_are_the_sdk_s_own_exceptions(start_router: StartRouter, engine: MockEngine) -> None:
    digest = "27042f4e6eca7d0b2a7ee4026df2ecfa51d3339e6d122aa099118ecd8563bad9"  # sha256 of "right"
    router = await start_router([engine], auth={"keys": [{"tenant": "acme", "sha256": digest}]})
    async with client_of(router, "wrong") as client:
        with pytest.raises(openai.AuthenticationError, match="not known"):
            await client.chat.completions.create(model="mock", messages=MESSAGES)
    async with client_of(router, "right") as client:
        with pytest.raises(openai.NotFoundError, match="there are: mock"):
            await client.chat.completions.create(model="nope", messages=MESSAGES)
        with pytest.raises(openai.PermissionDeniedError, match="not entitled"):
            await client.chat.completions.create(model="mock", messages=MESSAGES, service_tier="priority")
        engine.die_at = 2
        with pytest.raises(openai.APIError, match="failed during its answer"):
            async for _ in await client.chat.completions.create(model="mock", messages=MESSAGES, stream=True):
                pass
