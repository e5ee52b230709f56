"""An answer cut off after any of its tokens and gone on with: what a worker that was not disturbed would have said."""

from collections.abc import Iterator
from string import ascii_lowercase
from typing import Any

import httpx
import pytest
import torch

from m3_fakes.http import sse_events
from m3_fakes.worker import FakeWorker, serving
from m3_worker.config import TinySettings, WorkerSettings
from m3_worker.loading import load_served_model
from m3_worker.serving import WorkerState
from m3_worker.tiny import write_checkpoint

TOKENS = 16
MESSAGES = [{"role": "user", "content": "go on"}]
THINKING = {"type": "enabled"}
PROMPT = "once upon a time "


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A worker with a model of random weights."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("tiny")
    write_checkpoint(TinySettings(directory=directory, context=1024, seed=3))
    settings = WorkerSettings(model=directory, served_model_name="tiny", device="cpu", dtype="float32")
    model = load_served_model(settings, lambda read, needed: None)
    state = WorkerState(settings.max_body_bytes, model)
    with serving(state, model.engine) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client


def post(client: httpx.Client, path: str, **fields: Any) -> Any:
    response = client.post(path, json={"model": "tiny", "temperature": 0, **fields})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture(scope="module")
def biases(tiny: httpx.Client) -> dict[str, float]:
    """Letters alone, so that what a random model says is text, and an end of thinking among them."""
    found = {str(post(tiny, "/tokenize", prompt=text)["tokens"][0]): 98.0 for text in ascii_lowercase}
    closing = str(post(tiny, "/tokenize", prompt="</mm:think>")["tokens"][0])
    return {**found, closing: 98.5}


@pytest.mark.parametrize("thinking", ["enabled", "disabled"])
def test_a_chat_answer_cut_off_after_any_token_goes_on_as_it_would_have(
    tiny: httpx.Client, biases: dict[str, float], thinking: str
) -> None:
    fields = {"messages": MESSAGES, "thinking": {"type": thinking}, "logit_bias": biases, "max_tokens": TOKENS}
    whole = post(tiny, "/v1/chat/completions", **fields, return_token_ids=True)
    (choice,), usage = whole["choices"], whole["usage"]
    reasoning, content = choice["message"].get("reasoning_content", ""), choice["message"]["content"]
    assert (bool(reasoning), bool(content)) == (thinking == "enabled", True)
    for sent in range(1, len(reasoning + content)):
        said = content[: max(sent - len(reasoning), 0)]
        beginning = {"role": "assistant", "reasoning_content": reasoning[:sent], **({"content": said} if said else {})}
        generated_tokens = sent + (1 if reasoning and said else 0)  # the tag between the two
        rest = post(
            tiny,
            "/v1/chat/completions",
            **{**fields, "messages": [*MESSAGES, beginning]},
            continue_final_message=True,
            max_total_tokens=usage["prompt_tokens"] + TOKENS,
            return_token_ids=True,
        )
        message = rest["choices"][0]["message"]
        assert message.get("reasoning_content", "") == reasoning[sent:]
        assert message["content"] == content[len(said) :]
        assert rest["choices"][0]["token_ids"] == choice["token_ids"][generated_tokens:]
        assert rest["usage"]["prompt_tokens"] == usage["prompt_tokens"] + generated_tokens
        assert rest["usage"]["completion_tokens"] == TOKENS - generated_tokens


def test_a_message_of_anthropics_goes_on_in_thinking_and_in_text(tiny: httpx.Client) -> None:
    fields = {"messages": MESSAGES, "max_tokens": TOKENS, "thinking": THINKING}
    whole = post(tiny, "/v1/messages", **fields)
    used = whole["usage"]
    input_tokens = used["input_tokens"] + used["cache_read_input_tokens"]
    (block,) = whole["content"]
    assert block["type"] == "thinking"
    for blocks, kind in (
        ([{"type": "thinking", "thinking": "so ", "signature": ""}], "thinking"),
        ([{"type": "thinking", "thinking": "so ", "signature": ""}, {"type": "text", "text": "it "}], "text"),
    ):
        resumed = [*MESSAGES, {"role": "assistant", "content": blocks}]
        rest = post(
            tiny,
            "/v1/messages",
            **{**fields, "messages": resumed},
            continue_final_message=True,
            max_total_tokens=input_tokens + TOKENS,
        )
        assert [block["type"] for block in rest["content"]] == [kind]
        begun_tokens = 3 if kind == "thinking" else 7
        assert rest["usage"]["output_tokens"] == TOKENS - begun_tokens


def test_a_completion_goes_on_from_its_text(tiny: httpx.Client, biases: dict[str, float]) -> None:
    letters = {token: bias for token, bias in biases.items() if int(token) < 256}
    fields = {"logit_bias": letters, "max_tokens": TOKENS}
    whole = post(tiny, "/v1/completions", prompt=PROMPT, **fields)["choices"][0]["text"]
    for sent in (1, TOKENS // 2, TOKENS - 1):
        rest = post(
            tiny, "/v1/completions", prompt=PROMPT + whole[:sent], **fields, max_total_tokens=len(PROMPT) + TOKENS
        )
        assert rest["choices"][0]["text"] == whole[sent:]


def test_a_stream_that_goes_on_has_only_what_is_new(tiny: httpx.Client, biases: dict[str, float]) -> None:
    beginning = {"role": "assistant", "reasoning_content": "why", "content": "yes"}
    body = {
        "model": "tiny",
        "messages": [*MESSAGES, beginning],
        "continue_final_message": True,
        "add_generation_prompt": False,
        "max_tokens": 3,
        "temperature": 0,
        "logit_bias": biases,
        "stream": True,
    }
    events = sse_events(tiny.post("/v1/chat/completions", json=body))
    deltas = [event["choices"][0]["delta"] for event in events]
    assert all("reasoning_content" not in delta for delta in deltas)
    assert len("".join(delta.get("content", "") for delta in deltas)) == 3


REFUSED = [
    ({"messages": MESSAGES}, "messages[0]", "the last message must be the assistant's"),
    ({"add_generation_prompt": True}, "add_generation_prompt", "it must be false"),
    ({"response_format": {"type": "json_object"}}, "continue_final_message", "exclude each other"),
    ({"thinking": {"type": "disabled"}}, "messages[1]", "thinking is disabled"),
    ({"max_total_tokens": 3}, "max_total_tokens", "the prompt alone has"),
    ({"continue_final_message": False, "add_generation_prompt": False}, "add_generation_prompt", "it must be true"),
]


@pytest.mark.parametrize(("fields", "param", "part"), REFUSED)
def test_what_cannot_be_gone_on_with_is_refused_by_name(
    worker: FakeWorker, client: httpx.Client, fields: dict[str, Any], param: str, part: str
) -> None:
    beginning = {"role": "assistant", "reasoning_content": "why", "content": "yes"}
    body = {"model": "fake", "messages": [*MESSAGES, beginning], "continue_final_message": True, **fields}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert part in error["message"]


def test_an_assistants_last_message_is_gone_on_with_only_on_request(client: httpx.Client) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "yes"}]
    body = {"model": "fake", "messages": messages, "max_tokens": 3}
    refused = client.post("/v1/messages", json=body)
    assert refused.status_code == 400
    assert "unless continue_final_message is true" in refused.json()["error"]["message"]
    assert client.post("/v1/messages", json={**body, "continue_final_message": True}).status_code == 200
