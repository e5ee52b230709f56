"""Greedy tokens over HTTP are those of two independent implementations, on the same random checkpoints.

Requests of different lengths run at once, prompts are fed in odd chunks, the cache is too small for all of them, and
every configuration goes beyond block x top-k, where attention is sparse. The engine, its API and its server are real;
only the process is the test's.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import torch

from m3_fakes.worker import serving
from m3_oracles import hf, mlx
from m3_worker.config import TinySettings, WorkerSettings
from m3_worker.loading import load_served_model
from m3_worker.serving import WorkerState
from m3_worker.tiny import write_checkpoint

pytestmark = pytest.mark.xdist_group("oracles")  # importing the oracles takes seconds: once is enough

TOKENS = 64
STEP_TOKENS = 37

# Several GQA groups, block sizes and depths; dense layers first, or none.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "defaults": {"seed": 11},
    "one_group": {"seed": 12, "heads": 4, "kv_heads": 1, "block": 8, "topk": 3, "layers": 3},
    "a_group_per_head": {"seed": 13, "heads": 4, "kv_heads": 4, "hidden": 32, "head_dim": 8, "block": 4, "topk": 2},
    "odd_block": {"seed": 14, "heads": 6, "kv_heads": 3, "head_dim": 20, "index_dim": 28, "block": 7, "topk": 5},
    "no_dense_layer": {"seed": 15, "dense_layers": 0, "layers": 2, "experts": 5, "experts_per_token": 3, "block": 16},
    "own_block_only": {"seed": 16, "block": 32, "topk": 1, "layers": 3, "experts": 4},
}


def prompts_of(settings: TinySettings) -> list[list[int]]:
    """One token, around block x top-k, at a block's end, and well beyond: five requests of a batch."""
    edge = settings.block * settings.topk
    numbers = Random(settings.seed)
    lengths = (1, edge - 1, edge + 1, edge + settings.block, 2 * edge + 5)
    return [[numbers.randrange(256) for _ in range(length)] for length in lengths]


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinySettings:
    directory: Path = tmp_path_factory.mktemp("tiny")
    settings = TinySettings(directory=directory, context=512, **CONFIGURATIONS[request.param])
    write_checkpoint(settings)
    return settings


@pytest.fixture(scope="module")
def client(settings: TinySettings) -> Iterator[httpx.Client]:
    """A worker of that checkpoint, with a cache too small for all five at once."""
    torch.set_num_threads(1)
    longest = len(prompts_of(settings)[-1]) + TOKENS
    worker = WorkerSettings(
        model=settings.directory,
        served_model_name="tiny",
        device="cpu",
        dtype="float32",
        step_tokens=STEP_TOKENS,
        max_context_tokens=longest,
        cache_tokens=longest + 8 * settings.block,
    )
    model = load_served_model(worker, lambda read, needed: None)
    state = WorkerState(worker.max_body_bytes, model)
    with serving(state, model.engine) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        yield client


def generate(client: httpx.Client, prompt: list[int]) -> list[int]:
    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert choice["prompt_token_ids"] == prompt
    token_ids: list[int] = choice["token_ids"]
    return token_ids


def test_greedy_tokens_over_http_are_those_of_the_oracles(settings: TinySettings, client: httpx.Client) -> None:
    prompts = prompts_of(settings)
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: generate(client, prompt), prompts))
    assert [len(answer) for answer in answers] == [TOKENS] * len(prompts)
    for oracle in (hf, mlx):
        for prompt, answer in zip(prompts, answers, strict=True):
            # An oracle that, shown our tokens, would have chosen each of them decodes the same.
            chosen = oracle.logits(settings.directory, prompt + answer)[len(prompt) - 1 : -1].argmax(-1)
            assert chosen.tolist() == answer, f"{oracle.__name__}, a prompt of {len(prompt)} tokens"


@pytest.mark.parametrize("settings", ["one_group", "odd_block"], indirect=True)
def test_the_oracles_own_greedy_loops_give_the_same_tokens(settings: TinySettings, client: httpx.Client) -> None:
    prompt = prompts_of(settings)[1]
    answer = generate(client, prompt)
    assert hf.greedy(settings.directory, prompt, TOKENS) == answer
    assert mlx.greedy(settings.directory, prompt, TOKENS) == answer
