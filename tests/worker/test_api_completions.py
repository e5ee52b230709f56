"""`/v1/completions`: what is asked for is what comes back, whole or as a stream."""

import json
from typing import Any

import httpx
import openai
import pytest

from m3_fakes.http import sse_events
from m3_fakes.runner import continuation
from m3_fakes.worker import END_OF_TURN, FakeWorker
from m3_worker.scheduling.request import SamplingParameters

pytestmark = pytest.mark.either_way


def complete(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json={"model": "fake", "prompt": [1, 2, 3], **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def stream(client: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": "fake", "prompt": [1, 2, 3], "stream": True, **fields}
    return sse_events(client.post("/v1/completions", json=body))


def test_token_ids_in_give_token_ids_out(client: httpx.Client) -> None:
    body = complete(client, max_tokens=7, return_token_ids=True)
    (choice,) = body["choices"]
    assert choice["prompt_token_ids"] == [1, 2, 3]
    assert choice["token_ids"] == continuation([1, 2, 3], 7)
    assert choice["finish_reason"] == "length"
    assert body["object"] == "text_completion"
    assert body["model"] == "fake"


def test_token_ids_are_returned_only_if_asked_for(client: httpx.Client) -> None:
    (choice,) = complete(client, max_tokens=2)["choices"]
    assert choice.keys() == {"index", "text", "logprobs", "finish_reason"}


def test_a_text_prompt_is_tokenised(client: httpx.Client) -> None:
    (choice,) = complete(client, prompt="héllo", max_tokens=3, return_token_ids=True)["choices"]
    assert choice["prompt_token_ids"] == list("héllo".encode())
    assert choice["token_ids"] == continuation(list("héllo".encode()), 3)


@pytest.mark.worker_only("the router tells tenants apart by their keys, not by a header")
def test_prompt_tokens_from_the_cache_are_told_and_never_shared_between_tenants(client: httpx.Client) -> None:
    body = {"model": "fake", "prompt": list(b"a prompt of its own"), "max_tokens": 1, "n": 2}
    cached = [
        client.post("/v1/completions", json=body, headers={"x-m3-tenant": tenant}).json()["usage"][
            "prompt_tokens_details"
        ]["cached_tokens"]
        for tenant in ("one", "one", "two")
    ]
    assert cached == [0, 16, 0]  # whole pages of 4 tokens


def test_several_answers_to_several_prompts_are_choices_in_order(client: httpx.Client) -> None:
    body = complete(client, prompt=["ab", "xyz"], n=2, max_tokens=4, return_token_ids=True)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    prompts = [list(b"ab"), list(b"ab"), list(b"xyz"), list(b"xyz")]
    assert [choice["prompt_token_ids"] for choice in body["choices"]] == prompts
    assert [choice["token_ids"] for choice in body["choices"]] == [continuation(prompt, 4) for prompt in prompts]
    assert body["usage"]["prompt_tokens"] == 5
    assert body["usage"]["completion_tokens"] == 16


def test_a_stream_of_several_answers_says_what_the_whole_ones_say(client: httpx.Client) -> None:
    wanted = {"prompt": [[1, 2], [3]], "n": 3, "max_tokens": 5, "return_token_ids": True}
    whole = complete(client, **wanted)
    *events, usage = stream(client, **wanted, stream_options={"include_usage": True})
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 30
    parts: dict[int, list[dict[str, Any]]] = {}
    for event in events:
        for choice in event["choices"]:
            parts.setdefault(choice["index"], []).append(choice)
    for choice in whole["choices"]:
        mine = parts[choice["index"]]
        assert [token for part in mine for token in part["token_ids"]] == choice["token_ids"]
        assert [part["finish_reason"] for part in mine] == [None] * (len(mine) - 1) + ["length"]
        assert mine[0]["prompt_token_ids"] == choice["prompt_token_ids"]
        assert all("prompt_token_ids" not in part for part in mine[1:])


def test_answers_have_seeds_of_their_own(worker: FakeWorker, client: httpx.Client) -> None:
    seen: set[int | None] = set()
    worker.runner.before_step = lambda batch: seen.update(one.request.sampling.seed for one in batch.sampling)
    complete(client, n=3, seed=7, max_tokens=1)
    assert seen == {7, 8, 9}
    seen.clear()
    complete(client, n=2, max_tokens=1)
    assert seen == {None}


def test_the_best_of_several_are_given_and_all_of_them_counted(worker: FakeWorker, client: httpx.Client) -> None:
    worker.runner.reply_by_seed = {seed: [*str(seed).encode(), END_OF_TURN] for seed in range(10, 14)}
    worker.runner.logprob_by_seed = {10: -0.7, 11: -0.1, 12: -0.9, 13: -0.3}
    body = complete(client, n=2, best_of=4, seed=10, max_tokens=9)
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "11"), (1, "13")]
    assert body["usage"]["completion_tokens"] == 12
    assert body["choices"][0]["logprobs"] is None
    body = complete(client, prompt=[[1], [2]], best_of=3, seed=10, max_tokens=9, logprobs=0)
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "11"), (1, "11")]
    assert body["choices"][0]["logprobs"]["token_logprobs"] == [-0.1] * 3


def test_echo_repeats_the_prompt_before_each_text(worker: FakeWorker, client: httpx.Client) -> None:
    worker.runner.reply = [*b"!", END_OF_TURN]
    assert complete(client, prompt="héy", echo=True, max_tokens=9)["choices"][0]["text"] == "héy!"
    assert complete(client, prompt=list(b"you"), echo=True, max_tokens=9)["choices"][0]["text"] == "you!"
    pieces = [event["choices"][0]["text"] for event in stream(client, prompt="héy", echo=True, max_tokens=9)]
    assert "".join(pieces) == "héy!"


def test_what_is_asked_of_sampling_reaches_the_engine(worker: FakeWorker, client: httpx.Client) -> None:
    seen: list[SamplingParameters] = []
    worker.runner.before_step = lambda batch: seen.extend(one.request.sampling for one in batch.sampling)
    wanted = {"min_p": 0.25, "repetition_penalty": 1.5, "frequency_penalty": -2, "presence_penalty": 2.0}
    complete(client, **wanted, logit_bias={"5": -100, "258": 1.5, "7": 0}, max_tokens=1)
    (sampling,) = seen
    assert {name: getattr(sampling, name) for name in wanted} == wanted
    assert sampling.logit_bias == ((5, -100.0), (258, 1.5))


def test_if_one_of_several_answers_is_refused_none_is_left_behind(worker: FakeWorker, client: httpx.Client) -> None:
    worker.hold_steps()
    response = client.post("/v1/completions", json={"model": "fake", "prompt": [1], "n": 17, "max_tokens": 1})
    assert response.status_code == 429
    assert worker.engine.in_flight_count == 0


@pytest.mark.parametrize("prompt", [["hi"], [[104, 105]]])
def test_a_list_of_one_prompt_is_that_prompt(client: httpx.Client, prompt: list[Any]) -> None:
    (choice,) = complete(client, prompt=prompt, max_tokens=1, return_token_ids=True)["choices"]
    assert choice["prompt_token_ids"] == [104, 105]


def test_usage_adds_up(client: httpx.Client) -> None:
    assert complete(client, max_tokens=5)["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.worker_only("the router counts and numbers requests itself")
def test_the_answer_says_the_input_tokens_and_the_request_id_in_headers(client: httpx.Client) -> None:
    fields = {"model": "fake", "prompt": [5] * 11, "max_tokens": 1}
    for is_stream in (False, True):
        response = client.post(
            "/v1/completions", json={**fields, "stream": is_stream}, headers={"x-request-id": "mine-7"}
        )
        assert response.headers["x-m3-input-tokens"] == "11"
        assert response.headers["x-request-id"] == "mine-7"
    assert client.get("/health").headers["x-request-id"].startswith("req-")


def test_without_max_tokens_the_answer_may_fill_the_context(client: httpx.Client) -> None:
    body = complete(client, prompt=[7] * 250, max_tokens=None)
    assert body["usage"]["completion_tokens"] == 6
    assert body["choices"][0]["finish_reason"] == "length"


def test_the_end_of_a_turn_stops_and_is_not_part_of_the_text(worker: FakeWorker, client: httpx.Client) -> None:
    worker.runner.reply = [*b"done", END_OF_TURN, *b"never"]
    body = complete(client, max_tokens=20, return_token_ids=True)
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("done", "stop")
    assert choice["token_ids"] == [*b"done", END_OF_TURN]
    assert body["usage"]["completion_tokens"] == 5


def test_the_end_of_a_turn_can_be_ignored(worker: FakeWorker, client: httpx.Client) -> None:
    worker.runner.reply = [*b"go", END_OF_TURN, *b" on"]
    (choice,) = complete(client, max_tokens=6, ignore_eos=True)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("go on", "length")


def test_a_stop_token_of_the_request_stops_too(worker: FakeWorker, client: httpx.Client) -> None:
    worker.runner.reply = list(b"abcdef")
    (choice,) = complete(client, max_tokens=6, stop_token_ids=[ord("d")])["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "stop")


@pytest.mark.parametrize("stop", ["cde", ["zzz", "cde"], ["cde", "def"]])
def test_a_stop_string_across_tokens_is_never_shown(worker: FakeWorker, client: httpx.Client, stop: Any) -> None:
    worker.runner.reply = list(b"abcdefgh")
    body = complete(client, max_tokens=8, stop=stop, return_token_ids=True)
    (choice,) = body["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("ab", "stop")
    assert choice["token_ids"] == list(b"abcde")
    assert body["usage"]["completion_tokens"] == 5
    pieces = [event["choices"][0]["text"] for event in stream(client, max_tokens=8, stop=stop)]
    assert "".join(pieces) == "ab"


def test_what_only_begins_like_a_stop_string_is_shown_in_the_end(worker: FakeWorker, client: httpx.Client) -> None:
    worker.runner.reply = list(b"abcd")
    (choice,) = complete(client, max_tokens=4, stop="cdX")["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abcd", "length")


def test_stop_strings_count_only_after_min_tokens(worker: FakeWorker, client: httpx.Client) -> None:
    worker.runner.reply = list(b"abababab")
    (choice,) = complete(client, max_tokens=8, min_tokens=4, stop="ab")["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abab", "stop")


def test_a_request_stopped_by_a_string_leaves_the_engine_and_is_no_abort(
    worker: FakeWorker, client: httpx.Client
) -> None:
    before = worker.engine.counters.aborts
    worker.runner.reply = list(b"ab")
    complete(client, max_tokens=200, stop="b")
    assert worker.engine.in_flight_count == 0
    assert worker.engine.counters.aborts == before


def test_a_stream_says_what_the_whole_answer_says(worker: FakeWorker, client: httpx.Client) -> None:
    worker.runner.reply = [*"Grüße 🙂 an alle".encode(), END_OF_TURN]
    (whole,) = complete(client, max_tokens=50, return_token_ids=True)["choices"]
    events = stream(client, max_tokens=50, return_token_ids=True)
    choices = [event["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in choices) == whole["text"] == "Grüße 🙂 an alle"
    assert [token for choice in choices for token in choice["token_ids"]] == whole["token_ids"]
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert choices[0]["prompt_token_ids"] == [1, 2, 3]
    assert all("prompt_token_ids" not in choice for choice in choices[1:])
    assert len({event["id"] for event in events}) == 1


def test_a_stream_has_usage_only_if_asked_for_and_only_last(client: httpx.Client) -> None:
    assert all("usage" not in event for event in stream(client, max_tokens=4))
    *events, last = stream(client, max_tokens=4, stream_options={"include_usage": True})
    assert all("usage" not in event for event in events)
    assert last["choices"] == []
    assert last["usage"] == complete(client, max_tokens=4)["usage"]


def test_a_stream_comes_token_by_token(worker: FakeWorker, client: httpx.Client) -> None:
    gate = worker.hold_steps()
    body = {"model": "fake", "prompt": [1], "max_tokens": 3, "stream": True, "return_token_ids": True}
    gate.release()
    with client.stream("POST", "/v1/completions", json=body) as response:
        lines = (line for line in response.iter_lines() if line)
        for token in continuation([1], 3):
            assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["token_ids"] == [token]
            gate.release()
        assert next(lines) == "data: [DONE]"


def test_log_probabilities_have_openai_s_form(worker: FakeWorker, client: httpx.Client) -> None:
    worker.runner.reply = list(b"hi")
    (choice,) = complete(client, max_tokens=2, logprobs=2)["choices"]
    assert choice["logprobs"] == {
        "tokens": ["h", "i"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"\x00": -1.0, "\x01": -2.0, "h": -0.5}, {"\x00": -1.0, "\x01": -2.0, "i": -0.5}],
        "text_offset": [0, 1],
    }
    offsets = [event["choices"][0]["logprobs"]["text_offset"] for event in stream(client, max_tokens=2, logprobs=0)]
    assert [offset for part in offsets for offset in part] == [0, 1]


@pytest.mark.worker_only("the router sets the priority itself")
def test_the_priority_of_the_header_reaches_the_scheduler(worker: FakeWorker, client: httpx.Client) -> None:
    seen: list[int] = []
    worker.runner.before_step = lambda batch: seen.append(batch.chunks[0].sequence.request.priority)
    body = {"model": "fake", "prompt": [1], "max_tokens": 1}
    client.post("/v1/completions", json=body, headers={"x-m3-priority": "10"})
    client.post("/v1/completions", json=body)
    assert seen == [10, 0]


@pytest.mark.parametrize(
    "fields",
    [
        {
            "user": "eve",
            "metadata": {"a": "b"},
            "store": True,
            "service_tier": "auto",
            "priority": 3,
            "cache_salt": "x",
        },
        {"n": 1, "best_of": 1, "echo": False, "suffix": "", "logit_bias": {}, "presence_penalty": 0},
        {"zzz": 1, "top_a": {"b": []}, "stream_options": {"include_usages": True}},
        {"frequency_penalty": 0.0, "response_format": {"type": "text"}, "stream_options": None, "seed": None},
        {"temperature": None, "top_p": None, "max_tokens": 1, "logprobs": None, "stop": None},
        {"temperature": 2, "top_p": 1, "top_k": -1, "seed": -5, "stop": []},
    ],
)
def test_a_field_that_does_nothing_or_is_not_known_is_accepted(client: httpx.Client, fields: dict[str, Any]) -> None:
    assert complete(client, **{"max_tokens": 1, **fields})["usage"]["completion_tokens"] == 1


def test_the_openai_sdk_completes_and_streams(worker: FakeWorker) -> None:
    worker.runner.reply = [*b"hello", END_OF_TURN]
    with openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0) as sdk:
        whole = sdk.completions.create(model="fake", prompt="say hello", max_tokens=20)
        parts = sdk.completions.create(model="fake", prompt="say hello", max_tokens=20, stream=True)
        assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text == "hello"
        assert whole.usage is not None
        assert whole.usage.total_tokens == 9 + 6
        assert [model.id for model in sdk.models.list()] == ["fake"]
