"""Bad input: each line gets its own answer in OpenAI's shape, and the connection stays usable after it."""

import json
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import openai
import pytest

from m3_fakes.http import wait_until
from m3_fakes.worker import FakeWorker, StartWorker, running_worker

pytestmark = pytest.mark.either_way

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def connection(shared_worker: FakeWorker) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shared_worker.url, timeout=30, limits=httpx.Limits(max_connections=1)) as client:
        yield client


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "prompt": [1, 2, 3], "max_tokens": 1, **fields}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [USER], "max_tokens": 1, **fields}


class Bad(NamedTuple):
    """A line of the table: what is sent, and what it gets."""

    path: str
    body: Any
    message: str
    param: str | None = None
    status: int = 400


def bad_completion(message: str, param: str | None, **fields: Any) -> Bad:
    return Bad(COMPLETIONS, completion(**fields), message, param)


def bad_chat(message: str, param: str | None, **fields: Any) -> Bad:
    return Bad(CHAT, chat(**fields), message, param)


NOT_JSON = "the body is not valid JSON: "
LACKS = "this version does not support it"
AUDIO = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": ""}}]}
LOOKAHEAD = {"type": "object", "properties": {"a": {"type": "string", "pattern": "a(?=b)"}}}


def calling(*calls: tuple[str, str]) -> dict[str, Any]:
    """An assistant's calls of f: (id, arguments)."""
    functions = [(one, {"name": "f", "arguments": arguments}) for one, arguments in calls]
    return {
        "role": "assistant",
        "tool_calls": [{"id": one, "type": "function", "function": function} for one, function in functions],
    }


def result(identity: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": identity, "content": "done"}


CALLING = calling(("c1", "{}"), ("c2", "{}"))
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}

TABLE = [
    Bad(COMPLETIONS, b"", NOT_JSON + "EOF while parsing a value at line 1 column 0"),
    Bad(COMPLETIONS, b'{"model": "fake",', NOT_JSON + "EOF while parsing a value at line 1"),
    Bad(COMPLETIONS, b"{'model': 1}", NOT_JSON + "key must be a string at line 1 column 2"),
    Bad(COMPLETIONS, b'{"model": "fake", "prompt": "\xff"}', NOT_JSON + "invalid unicode code point"),
    Bad(COMPLETIONS, b'{"prompt": "\\ud800"}', NOT_JSON),
    Bad(COMPLETIONS, b'{"temperature": NaN}', NOT_JSON),
    Bad(COMPLETIONS, b"[" * 5000, NOT_JSON + "recursion limit exceeded"),
    Bad(COMPLETIONS, [1], "the body must be a JSON object, not [1]"),
    Bad(COMPLETIONS, {"prompt": "x"}, "model is required", "model"),
    Bad(COMPLETIONS, {"model": "fake"}, "prompt is required", "prompt"),
    bad_completion("model is 5: must be a string", "model", model=5),
    Bad(
        COMPLETIONS, completion(model="gpt"), 'the model "gpt" does not exist; this worker serves "fake"', "model", 404
    ),
    bad_completion("max_tokens is -1: must be greater than or equal to 1", "max_tokens", max_tokens=-1),
    bad_completion("max_tokens is 0: must be greater than or equal to 1", "max_tokens", max_tokens=0),
    bad_completion('max_tokens is "9": must be a valid integer', "max_tokens", max_tokens="9"),
    bad_completion("max_tokens is true: must be a valid integer", "max_tokens", max_tokens=True),
    bad_completion(
        "max_tokens is 254: with 3 prompt tokens that makes 257, the context holds 256", "max_tokens", max_tokens=254
    ),
    bad_completion(
        "the prompt has 256 tokens: the context holds 256, one of them for the answer", "prompt", prompt=[1] * 256
    ),
    bad_completion("prompt is empty: it must have at least one token", "prompt", prompt=""),
    bad_completion("prompt is empty: it must have at least one token", "prompt", prompt=[]),
    bad_completion("prompt has 5 prompts, 26 answers to each: 128 in all", "prompt", prompt=["a"] * 5, best_of=26),
    bad_completion('prompt is {"a": 1}: must be a string or a list', "prompt", prompt=["a", {"a": 1}]),
    bad_completion("prompt has the token id 259: ids are 0 to 258", "prompt", prompt=[1, 259]),
    bad_completion("prompt has the token id -1: ids are 0 to 258", "prompt", prompt=[-1]),
    bad_completion("prompt has the token id 1180591620717411303424", "prompt", prompt=[2**70]),
    bad_completion("prompt is [1, true]: must be a string or a list of token ids", "prompt", prompt=[1, True]),
    bad_completion('prompt is {"a": 1}: must be a string or a list of token ids', "prompt", prompt={"a": 1}),
    bad_completion("temperature is 5.0: must be less than or equal to 2", "temperature", temperature=5.0),
    bad_completion("temperature is -0.1: must be greater than or equal to 0", "temperature", temperature=-0.1),
    bad_completion("top_p is 0: must be greater than 0", "top_p", top_p=0),
    bad_completion("top_k is -2: must be greater than or equal to -1", "top_k", top_k=-2),
    bad_completion("seed is 9223372036854775808: must be", "seed", seed=2**63),
    bad_completion("must have at most 16 strings, not 17", "stop", stop=["a"] * 17),
    bad_completion('stop is "": must have strings of 1 to 1000 characters', "stop", stop=""),
    bad_completion("stop_token_ids has 300: the model has 259 tokens", "stop_token_ids", stop_token_ids=[300]),
    bad_completion("min_tokens is 2: the answer can have at most 1", "min_tokens", min_tokens=2),
    bad_completion("logprobs is 21: must be less than or equal to 20", "logprobs", logprobs=21),
    bad_completion('stream is "yes": must be a valid boolean', "stream", stream="yes"),
    bad_completion("n is 129: must be less than or equal to 128", "n", n=129),
    bad_completion("n is 0: must be greater than or equal to 1", "n", n=0),
    bad_completion("echo with logprobs is not supported", None, echo=True, logprobs=0),
    bad_completion("best_of is 2: must be at least n, which is 3", None, best_of=2, n=3),
    bad_completion(f"use_beam_search is true: {LACKS}; only false", "use_beam_search", use_beam_search=True),
    bad_completion(f"prompt_logprobs is 1: {LACKS}", "prompt_logprobs", prompt_logprobs=1),
    bad_completion("best_of cannot be streamed", None, best_of=2, stream=True),
    bad_completion(f'suffix is "x": {LACKS}; only "" is accepted', "suffix", suffix="x"),
    bad_completion("a bias must be from -100 to 100, not 101.0", "logit_bias", logit_bias={"1": 101}),
    bad_completion('"01" is no token id', "logit_bias", logit_bias={"01": 1}),
    bad_completion('"hi" is no token id', "logit_bias", logit_bias={"hi": 1}),
    bad_completion("logit_bias has 300: the model has 259 tokens", "logit_bias", logit_bias={"300": 1}),
    bad_completion("must be a valid number", "logit_bias.5", logit_bias={"5": "x"}),
    bad_completion("at most 1024 tokens, not 1025", "logit_bias", logit_bias={str(one): 1 for one in range(1025)}),
    bad_completion("min_p is 1.5: must be less than or equal to 1", "min_p", min_p=1.5),
    bad_completion("presence_penalty is -2.5: must be greater", "presence_penalty", presence_penalty=-2.5),
    bad_completion("frequency_penalty is 3: must be less than or equal to 2", "frequency_penalty", frequency_penalty=3),
    bad_completion("repetition_penalty is 0: must be greater than 0", "repetition_penalty", repetition_penalty=0),
    bad_completion("guided_json is no longer a field: use structured_outputs.json", "guided_json", guided_json={}),
    bad_completion("stream_options is 5: must be", "stream_options", stream_options=5),
    Bad(CHAT, {"model": "fake"}, "messages is required", "messages"),
    bad_chat("messages must be a list with at least one message", "messages", messages=[]),
    bad_chat("can only open the conversation", "messages[1].role", messages=[USER, {"role": "system", "content": "x"}]),
    bad_chat(
        "a root message can only be the first", "messages[1].role", messages=[USER, {"role": "root", "content": "x"}]
    ),
    bad_chat("messages[0].role is 'bot': must be one of root", "messages[0].role", messages=[{"role": "bot"}]),
    bad_chat("must follow an assistant message with", "messages[1]", messages=[USER, result("c1")]),
    bad_chat("has no tool call of this id", "messages[2].tool_call_id", messages=[USER, CALLING, result("c9")]),
    bad_chat("answers c2; every call", "messages[1].tool_calls", messages=[USER, CALLING, result("c1")]),
    bad_chat("answers c1, c2; every call", "messages[1].tool_calls", messages=[USER, CALLING]),
    bad_chat(
        "is not valid JSON: EOF while parsing",
        "messages[1].tool_calls[0].function.arguments",
        messages=[USER, calling(("c1", "{"))],
    ),
    bad_chat(
        "must be a string or a list of parts",
        "messages[2].content",
        messages=[USER, calling(("c1", "{}")), {**result("c1"), "content": {"sunny": True}}],
    ),
    bad_chat("this model takes no images", "messages[0].content[0].image_url", messages=[IMAGE]),
    bad_chat("is of type 'input_audio': audio is not supported", "messages[0].content[0]", messages=[AUDIO]),
    bad_chat("tools[0].function must be an object", "tools[0].function", tools=[{"type": "function"}]),
    bad_chat("tool_choice demands a tool call, but there are no tools", "tool_choice", tool_choice="required"),
    bad_chat(
        "tool_choice names 'g', which is not among the tools: f",
        "tool_choice",
        tools=[{"type": "function", "function": {"name": "f"}}],
        tool_choice={"type": "function", "function": {"name": "g"}},
    ),
    bad_chat(
        "tools cannot be enforced: ",
        "tools",
        tools=[{"type": "function", "function": {"name": "f", "parameters": LOOKAHEAD}}],
        tool_choice="required",
    ),
    bad_chat(
        "json_schema is required with type json_schema", "response_format", response_format={"type": "json_schema"}
    ),
    bad_chat(f'functions is [{{"name": "f"}}]: {LACKS}', "functions", functions=[{"name": "f"}]),
    bad_chat("reasoning_effort is \"deep\": must be 'none'", "reasoning_effort", reasoning_effort="deep"),
    bad_chat("n is 0: must be greater than or equal to 1", "n", n=0),
    bad_chat("max_tokens is -1: must be greater than or equal to 1", "max_tokens", max_tokens=-1),
    bad_chat(
        "max_completion_tokens is 524288: with", "max_completion_tokens", max_tokens=None, max_completion_tokens=2**19
    ),
    bad_chat("temperature is 5.0: must be less than or equal to 2", "temperature", temperature=5.0),
    bad_chat("max_tokens is 1 and max_completion_tokens is 2: give one of them", None, max_completion_tokens=2),
    bad_chat("top_logprobs needs logprobs to be true", None, top_logprobs=2),
    bad_chat("must be 'enabled', 'disabled' or 'adaptive'", "thinking.type", thinking={"type": "on"}),
    bad_chat(
        "thinking.type is enabled and chat_template_kwargs.thinking_mode is disabled: give one of them",
        "thinking",
        thinking={"type": "enabled"},
        chat_template_kwargs={"thinking_mode": "disabled"},
    ),
    bad_chat(
        "the model's chat template does not read it; it reads: thinking_mode",
        "chat_template_kwargs.enable_thinking",
        chat_template_kwargs={"enable_thinking": True},
    ),
    Bad("/v1/audio/speech", {}, "there is no POST /v1/audio/speech here", None, 404),
    Bad(COMPLETIONS, b"x" * 65537, "the body has 65537 bytes: the limit is 65536 bytes", None, 413),
]


def local_port(response: httpx.Response) -> int:
    """The client's end of the connection that a response came on."""
    port: int = response.extensions["network_stream"].get_extra_info("client_addr")[1]
    return port


@pytest.mark.parametrize("bad", TABLE, ids=[f"{bad.path}-{bad.message[:50]}" for bad in TABLE])
def test_a_bad_request_is_answered_in_openai_s_shape_and_the_connection_lives(
    connection: httpx.Client, way: str, bad: Bad
) -> None:
    content = bad.body if isinstance(bad.body, bytes) else json.dumps(bad.body).encode()
    response = connection.post(bad.path, content=content)
    assert response.status_code == bad.status, response.text
    error = response.json()["error"]
    if way == "direct" or "x-m3-worker" in response.headers:  # a router has its own words for what it finds itself
        assert bad.message in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == bad.param
    assert "x-request-id" in response.headers
    after = connection.post(COMPLETIONS, json=completion())
    assert after.status_code == 200
    assert local_port(after) == local_port(response)


def test_a_wrong_method_is_told(connection: httpx.Client) -> None:
    response = connection.get(COMPLETIONS)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert "/v1/completions" in response.json()["error"]["message"]


def test_a_model_that_is_not_there_is_named_with_those_that_are(connection: httpx.Client) -> None:
    response = connection.get("/v1/models/gpt/5")
    assert response.status_code == 404
    message = response.json()["error"]["message"]
    assert "gpt/5" in message
    assert "fake" in message
    assert connection.get("/v1/models/fake").json()["max_model_len"] == 256


def test_a_body_over_the_limit_is_refused_without_its_length_being_told(connection: httpx.Client) -> None:
    parts = (b"x" * 1000 for _ in range(100))
    response = connection.post(COMPLETIONS, content=parts)
    assert response.status_code == 413
    assert "65536 bytes" in response.json()["error"]["message"]
    assert local_port(connection.post(COMPLETIONS, json=completion())) == local_port(response)


@pytest.mark.worker_only("the router sets the priority itself")
@pytest.mark.parametrize("priority", ["-1", "101", "high", "1.5", "²"])
def test_a_priority_that_is_none_is_refused(connection: httpx.Client, priority: str) -> None:
    response = connection.post(COMPLETIONS, json=completion(), headers={"x-m3-priority": priority.encode()})
    assert response.status_code == 400
    assert "must be an integer from 0 to 100" in response.json()["error"]["message"]


def test_bytes_that_are_no_http_end_the_connection_only(worker: FakeWorker, connection: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", worker.port), timeout=10) as raw:
        raw.sendall(b"nonsense\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 400")
    assert connection.post(COMPLETIONS, json=completion()).status_code == 200


def test_a_full_queue_is_429_with_retry_after() -> None:
    with (
        running_worker(max_concurrent=1, max_waiting=0) as worker,
        httpx.Client(base_url=worker.url, timeout=30) as client,
    ):
        worker.hold_steps()
        with client.stream("POST", COMPLETIONS, json=completion(stream=True)):
            refused = client.post(COMPLETIONS, json=completion())
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert "the engine's queue is full: 1 requests are running or waiting" in refused.json()["error"]["message"]
            with pytest.raises(openai.RateLimitError, match="queue is full"):
                openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=0).completions.create(
                    model="fake", prompt="x"
                )
            worker.reset()
        wait_until(lambda: worker.engine.in_flight_count == 0)
        assert client.post(COMPLETIONS, json=completion()).status_code == 200


def test_a_worker_that_is_not_ready_says_so_with_503() -> None:
    with running_worker(is_loaded=False) as worker, httpx.Client(base_url=worker.url, timeout=30) as client:
        assert (client.get("/health").status_code, client.get("/health").json()) == (503, {"status": "loading"})
        refused = client.post(COMPLETIONS, json=completion())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert refused.json()["error"]["message"] == "the model is still loading"
        assert client.get("/v1/models").status_code == 503
        assert "m3_worker_load_progress_read_bytes 0.0" in client.get("/metrics").text
        worker.state.model = worker.model
        assert (client.get("/health").status_code, client.get("/health").json()) == (200, {"status": "ok"})
        assert client.post(COMPLETIONS, json=completion()).status_code == 200
        worker.state.is_draining = True
        assert (client.get("/health").status_code, client.get("/health").json()) == (503, {"status": "draining"})
        refused = client.post(COMPLETIONS, json=completion())
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def test_an_engine_that_fails_tells_every_request_and_the_health_check_why() -> None:
    def fail(batch: object) -> None:
        raise RuntimeError("the device is gone")

    with running_worker() as worker, httpx.Client(base_url=worker.url, timeout=30) as client:
        gate = worker.hold_steps()
        body = completion(stream=True, max_tokens=50)
        with client.stream("POST", COMPLETIONS, json=body) as response:
            lines = (line for line in response.iter_lines() if line)
            gate.release()
            next(lines)
            worker.runner.before_step = fail
            gate.release()
            rest = [json.loads(line.removeprefix("data: ")) for line in lines]
        assert rest[-1]["error"]["message"] == "the engine failed: RuntimeError: the device is gone"
        refused = client.post(COMPLETIONS, json=completion())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "worker_failed")
        assert client.get("/health").json() == {"status": "failed", "reason": "RuntimeError: the device is gone"}


def test_a_whole_answer_that_the_engine_cannot_finish_is_500(start_worker: StartWorker) -> None:
    def fail(batch: object) -> None:
        raise RuntimeError("the device is gone")

    with start_worker() as worker, httpx.Client(base_url=worker.url, timeout=30) as client:
        worker.runner.before_step = fail
        response = client.post(COMPLETIONS, json=completion())
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "server_error"
        assert response.json()["error"]["message"] == "the engine failed: RuntimeError: the device is gone"
