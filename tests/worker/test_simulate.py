"""The simulated worker: the real API over a latency model that can be worked out by hand, without torch."""

import json
import re
import signal
import subprocess
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from m3_fakes.worker import running_simulation
from m3_worker.cache_size import CacheSizeError
from m3_worker.config import WorkerSettings
from m3_worker.scheduling.batch import Batch, Chunk
from m3_worker.scheduling.request import Request, SamplingParameters, Sequence
from m3_worker.simulate import Latency, SimulatedRunner, load_simulated_model
from m3_worker.simulated_words import WORDS

FAST = WorkerSettings(simulate=True, simulate_token_seconds=0, simulate_prefill_tokens_per_second=1e9)
HELLO = [{"role": "user", "content": "hello"}]


@contextmanager
def simulation(settings: WorkerSettings = FAST) -> Iterator[openai.OpenAI]:
    with (
        running_simulation(settings) as (_, url),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def sequence(prompt: list[int], generated: list[int] | None = None, **sampling: int) -> Sequence:
    made = Sequence(Request("r", prompt, SamplingParameters(max_tokens=100, **sampling)))
    for token_id in generated or []:
        made.append(token_id)
    return made


def chunk(of: Sequence, computed: int, tokens: int) -> Chunk:
    of.computed_tokens = computed
    return Chunk(of, computed, tokens, array("q"), samples=computed + tokens == of.total_tokens)


def test_a_step_takes_its_prefill_and_one_decode_of_all_that_decode() -> None:
    latency = Latency(prefill_tokens_per_second=1000, token_seconds=0.02, load_factor=0.5)
    assert latency.step_seconds(500, 0) == 0.5
    assert latency.step_seconds(0, 1) == 0.02
    assert latency.step_seconds(0, 3) == pytest.approx(0.04)
    assert latency.step_seconds(500, 3) == pytest.approx(0.54)


def test_only_what_a_batch_computes_takes_time() -> None:
    slept: list[float] = []
    runner = SimulatedRunner(Latency(100, 1.0, 0.0), 8, slept.append)
    half_cached = chunk(sequence(list(range(50))), 20, 30)
    decoding = chunk(sequence([1, 2, 3], [4]), 3, 1)
    assert len(runner.run(Batch((decoding, half_cached)))) == 2
    assert slept == [pytest.approx(1.0 + 0.3)]


def test_the_same_seed_says_the_same_words_and_another_says_others() -> None:
    with simulation() as client:

        def say(seed: int) -> str | None:
            body = client.chat.completions.create(model="simulated", messages=HELLO, seed=seed)
            return body.choices[0].message.content

        first = say(1)
        assert first is not None
        assert first == say(1) != say(2)
        assert {f" {word}" for word in first.split()} <= set(WORDS)


def test_an_answer_ends_by_itself_or_when_the_request_says_so() -> None:
    with simulation(FAST.model_copy(update={"simulate_answer_tokens": 8})) as client:
        whole = client.chat.completions.create(model="simulated", messages=HELLO)
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 9, "eight words and the end of the turn"
        cut = client.chat.completions.create(model="simulated", messages=HELLO, max_tokens=3)
        assert (cut.choices[0].finish_reason, len((cut.choices[0].message.content or "").split())) == ("length", 3)
        longer = client.completions.create(model="simulated", prompt="x", extra_body={"min_tokens": 12})
        assert len(longer.choices[0].text.split()) == 12
        endless = client.completions.create(
            model="simulated", prompt="x", max_tokens=40, extra_body={"ignore_eos": True}
        )
        assert len(endless.choices[0].text.split()) == 40


def test_a_simulated_model_thinks_when_it_is_told_to() -> None:
    with simulation() as client:
        body = client.chat.completions.create(
            model="simulated", messages=HELLO, extra_body={"thinking": {"type": "enabled"}}
        )
        message = body.choices[0].message.model_dump()
        assert len(message["reasoning_content"].split()) == 16
        assert len(message["content"].split()) == 64 - 16 - 1


def test_a_prompt_that_was_seen_is_found_by_its_tenant_alone_in_every_dialect() -> None:
    prompt = "the same again and again " * 40
    with running_simulation(FAST) as (_, url), httpx.Client(base_url=url, timeout=30) as client:

        def usage(path: str, tenant: str) -> dict[str, Any]:
            body = {"model": "simulated", "max_tokens": 1, "messages": [{"role": "user", "content": prompt}]}
            body |= {"input": prompt} if path == "responses" else {}
            found: dict[str, Any] = client.post(f"/v1/{path}", json=body, headers={"x-m3-tenant": tenant}).json()
            return dict(found["usage"])

        for path, cached in (
            ("chat/completions", lambda found: found["prompt_tokens_details"]["cached_tokens"]),
            ("responses", lambda found: found["input_tokens_details"]["cached_tokens"]),
            ("messages", lambda found: found["cache_read_input_tokens"]),
        ):
            first, again, other = usage(path, f"a-{path}"), usage(path, f"a-{path}"), usage(path, f"b-{path}")
            assert cached(first) == cached(other) == 0, path
            assert cached(again) >= 128, path
            assert cached(again) % 128 == 0, path
        assert again["input_tokens"] + again["cache_read_input_tokens"] == first["input_tokens"]


def test_a_context_of_half_a_million_tokens_is_no_work() -> None:
    prompt = {"model": "simulated", "prompt": [65] * 524_288, "max_tokens": 1}
    with running_simulation(FAST) as (_, url):
        body = httpx.post(f"{url}/v1/completions", json=prompt, timeout=30).json()
    assert body["usage"]["prompt_tokens"] == 524_288


SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "count": {"type": "integer", "minimum": 3},
        "kinds": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2},
        "more": {"type": "object", "additionalProperties": {"type": "boolean"}},
    },
    "required": ["title", "count", "kinds", "more"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_that_must_match_a_schema_does(seed: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    with simulation() as client:
        body = client.chat.completions.create(model="simulated", messages=HELLO, seed=seed, response_format=form)
        assert body.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(body.choices[0].message.content or ""), SCHEMA)


def test_a_tool_that_must_be_called_is_called() -> None:
    tool = {"type": "function", "function": {"name": "file", "parameters": SCHEMA}}
    with simulation() as client:
        body = client.chat.completions.create(
            model="simulated", messages=HELLO, tools=[tool], tool_choice="required", max_tokens=2000
        )
        (call,) = body.choices[0].message.tool_calls or ()
        assert call.function.name == "file"
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            WorkerSettings(simulate=True, max_context_tokens=2**21),
            "--max-context-tokens 2097152: a simulated model has 1048576",
        ),
        (
            WorkerSettings(simulate=True, max_context_tokens=1000, cache_tokens=512),
            "one sequence of 1000 tokens needs 8 pages of 128 tokens, the cache has 4",
        ),
        (WorkerSettings(simulate=True, cache_tokens=100), "one sequence of 1 tokens needs 1 pages"),
    ],
)
def test_a_context_that_does_not_fit_is_refused_with_the_numbers(settings: WorkerSettings, message: str) -> None:
    with pytest.raises(CacheSizeError, match=re.escape(message)):
        load_simulated_model(settings, lambda read_bytes, needed_bytes: None)


def test_loading_takes_the_time_it_is_told_and_shows_how_far_it_is() -> None:
    shares: list[tuple[int, int]] = []
    load_simulated_model(
        FAST.model_copy(update={"simulate_load_seconds": 0.01}), lambda read, needed: shares.append((read, needed))
    )
    assert (shares[0], shares[-1]) == ((0, 100), (100, 100))
    assert shares == sorted(shares)


def test_the_command_serves_without_torch_and_ends_when_told() -> None:
    program = (
        "import sys; sys.argv = ['m3-worker', '--simulate', '--port=0', '--served-model-name=MiniMax-M3'];"
        "import atexit; from m3_worker.server import main;"
        "atexit.register(lambda: print('torch' in sys.modules));"
        "main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        found = re.search(r"listening on (http://\S+), loading MiniMax-M3", next(lines))
        assert found is not None
        assert "ready: serving MiniMax-M3" in next(lines)
        answer = httpx.post(
            f"{found[1]}/v1/completions", json={"model": "MiniMax-M3", "prompt": "x", "max_tokens": 2}, timeout=10
        )
        assert answer.status_code == 200
        assert "m3_worker_generation_tokens_total 2.0" in httpx.get(f"{found[1]}/metrics", timeout=10).text
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=15)
    finally:
        process.kill()
        process.wait(10)
    assert (process.returncode, out) == (0, "False\n")
