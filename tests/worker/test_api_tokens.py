"""`/tokenize` and `/detokenize` against each other, and what they refuse."""

from typing import Any

import httpx
import pytest

from m3_fakes.worker import END_OF_TURN, OPENING

SHARED = {"max_model_len": 256, "token_strs": None}


def test_a_text_is_its_bytes_and_comes_back(client: httpx.Client) -> None:
    made = client.post("/tokenize", json={"model": "fake", "prompt": "hé<mm:think>[e~["}).json()
    tokens = [104, 195, 169, OPENING, END_OF_TURN]
    assert made == {"count": 5, "tokens": tokens, **SHARED}
    assert client.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": "hé<mm:think>[e~["}


def test_messages_count_as_chat_counts_them(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "hello"}]
    counted = client.post("/tokenize", json={"model": "fake", "messages": messages}).json()["count"]
    chat = client.post("/v1/chat/completions", json={"model": "fake", "messages": messages, "max_tokens": 1}).json()
    assert counted == chat["usage"]["prompt_tokens"]


def test_the_text_of_each_token_is_given_when_it_is_asked_for(client: httpx.Client) -> None:
    made = client.post("/tokenize", json={"prompt": "aé", "return_token_strs": True}).json()
    assert made["token_strs"] == ["a", "\ufffd", "\ufffd"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/tokenize", {}, "give one of prompt and messages"),
        ("/tokenize", {"prompt": "a", "messages": []}, "give one of prompt and messages"),
        ("/tokenize", {"messages": []}, "messages must be a list with at least one message"),
        ("/tokenize", {"prompt": 5}, "prompt is 5: must be a string or a list of token ids"),
        ("/tokenize", {"prompt": "x", "model": 5}, "model is 5: must be a string"),
        ("/detokenize", {}, "tokens is required"),
        ("/detokenize", {"tokens": "abc"}, 'tokens is "abc": must be a valid list'),
        ("/detokenize", {"tokens": [1, 259]}, "tokens has the token id 259: ids are 0 to 258"),
        ("/detokenize", {"tokens": [2**80]}, "tokens has the token id 1208925819614629174706176: ids are 0 to 258"),
    ],
)
def test_what_cannot_be_translated_is_refused_by_name(
    client: httpx.Client, path: str, body: dict[str, Any], message: str
) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
