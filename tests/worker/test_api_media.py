"""Images and video through the HTTP API: answers are those of transformers, and a refusal is a 400 that says why."""

import base64
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from m3_fakes.worker import serving
from m3_media import data_url, image_file, picture, video_file
from m3_oracles import hf
from m3_routed import reached
from m3_worker.config import TinySettings, WorkerSettings
from m3_worker.loading import load_served_model
from m3_worker.media.decode import decode_image
from m3_worker.media.items import MediaLimits
from m3_worker.model.vision import normalised
from m3_worker.serving import ServedModel, WorkerState
from m3_worker.tiny import write_checkpoint

pytestmark = [pytest.mark.either_way, pytest.mark.xdist_group("oracles")]

CONTEXT = 2048

TOKENS = 32
CAT, DOG = image_file(picture(150, 100, 1)), image_file(picture(100, 150, 2), "JPEG")
FILM = video_file(6, (84, 56), 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    write_checkpoint(TinySettings(directory=directory, seed=21, layers=3, block=8, topk=3, context=CONTEXT))
    return directory


def load(checkpoint: Path) -> ServedModel:
    """Chunks of at most 41 tokens: every image is cut through."""
    settings = WorkerSettings(
        model=checkpoint,
        served_model_name="tiny",
        device="cpu",
        step_tokens=41,
        cache_tokens=4096,
        max_media_items=3,
        max_image_pixels=100_000,
        media_memory_bytes=2 * 2**20,
    )
    return load_served_model(settings, lambda read, needed: None)


@contextmanager
def seeing_worker(model: ServedModel) -> Iterator[str]:
    with serving(WorkerState(64 * 2**20, model), model.engine) as port:
        yield f"http://127.0.0.1:{port}"
    assert model.media is not None
    model.media.close()


@pytest.fixture(scope="module")
def models(way: str, checkpoint: Path) -> list[ServedModel]:
    """Of each worker, one."""
    torch.set_num_threads(1)
    return [load(checkpoint) for _ in range(1 if way == "direct" else 2)]


@pytest.fixture(scope="module")
def model(models: list[ServedModel]) -> ServedModel:
    """The model, whichever worker answers."""
    return models[0]


@pytest.fixture(scope="module")
def client(way: str, models: list[ServedModel]) -> Iterator[httpx.Client]:
    waiting = iter(models)
    with (
        reached(way, lambda: seeing_worker(next(waiting)), "tiny", context_tokens=CONTEXT) as url,
        httpx.Client(base_url=url, timeout=120) as client,
    ):
        yield client


def image(content: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(content)}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def ask(client: httpx.Client, *parts: dict[str, Any], **fields: Any) -> httpx.Response:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": list(parts)}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    return client.post("/v1/chat/completions", json=body | fields)


def answer(client: httpx.Client, *parts: dict[str, Any], **fields: Any) -> tuple[list[int], list[int], dict[str, Any]]:
    """(prompt's token ids, answer's token ids, usage)"""
    response = ask(client, *parts, **fields)
    assert response.status_code == 200, response.text
    body = response.json()
    (choice,) = body["choices"]
    prompt = body.get("prompt_token_ids") or choice["prompt_token_ids"]
    return prompt, choice["token_ids"], body["usage"]


def test_an_answer_about_images_is_that_of_transformers(
    client: httpx.Client, model: ServedModel, checkpoint: Path
) -> None:
    prompt, tokens, usage = answer(client, text("One: "), image(CAT), text(" two: "), image(DOG), text(" which?"))
    assert model.media is not None
    segments = [decode_image(content, model.media.config, MediaLimits()).segments[0] for content in (CAT, DOG)]
    patches = [torch.from_numpy(np.ascontiguousarray(segment.patches)) for segment in segments]
    expected = hf.greedy(
        checkpoint,
        prompt,
        TOKENS,
        pixel_values=normalised(torch.cat(patches)).flatten(1),
        image_grid_thw=torch.tensor([segment.grid for segment in segments]),
    )
    assert tokens == expected
    placeholders = sum(segment.grid[1] * segment.grid[2] // 4 for segment in segments)
    assert prompt.count(model.media.config.image_token_id) == placeholders
    assert usage["prompt_tokens"] == len(prompt)


@pytest.mark.worker_only("another picture may go to another worker, which has nothing of it cached")
def test_what_is_cached_depends_on_what_the_image_shows(client: httpx.Client) -> None:
    other = image_file(picture(150, 100, 9))
    question = text("What is on it, then? " * 3)
    first = answer(client, question, image(CAT), question)
    again = answer(client, question, image(CAT), question)
    different = answer(client, question, image(other), question)
    assert again[:2] == first[:2]
    assert (
        again[2]["prompt_tokens_details"]["cached_tokens"] > different[2]["prompt_tokens_details"]["cached_tokens"] > 0
    )
    assert different[0] == first[0]
    assert different[1] != first[1]


def test_a_video_is_seen_with_its_timestamps(client: httpx.Client, model: ServedModel) -> None:
    part = {"type": "video_url", "video_url": {"url": data_url(FILM, "video/mp4")}}
    prompt, _, _ = answer(client, text("Watch: "), part)
    seen = model.tokenizer.encode("]<]4.0 seconds[>[]<]start of image[>[", add_special_tokens=False)
    assert any(prompt[start : start + len(seen)] == seen for start in range(len(prompt)))
    assert model.media is not None
    assert prompt.count(model.media.config.video_token_id) == 3 * 2 * 3


def test_placeholders_in_somebodys_text_are_text(client: httpx.Client, model: ServedModel) -> None:
    words = "]<]image[>[ and ]<]video[>[ are written so"
    prompt, _, _ = answer(client, text(words), image(CAT))
    alone, _, _ = answer(client, text(""), image(CAT))
    assert model.media is not None
    token = model.media.config.image_token_id
    assert prompt.count(token) == alone.count(token)
    assert len(prompt) == len(alone) + len(words)


def test_an_assistant_who_wrote_a_placeholder_is_refused(client: httpx.Client) -> None:
    messages = [
        {"role": "user", "content": [image(CAT)]},
        {"role": "assistant", "content": "]<]image[>["},
        {"role": "user", "content": "go on"},
    ]
    response = ask(client, messages=messages)
    assert response.status_code == 400
    assert "must stand in no message of an assistant" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"type": "image_url", "image_url": {"url": "https://a.example/cat.png"}},
            "messages[0].content[1].image_url: this worker reads data: URLs only: http(s) needs --allow-media-urls",
        ),
        (
            {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
            "messages[0].content[1].image_url: this worker reads data: URLs only",
        ),
        (image(b"GIF"), "messages[0].content[1].image_url: it is no image that can be read"),
        (
            image(image_file(picture(400, 300))),
            "messages[0].content[1].image_url: it is 400 x 300 pixels: must be at most",
        ),
        (
            {"type": "video_url", "video_url": {"url": data_url(CAT)}},
            "messages[0].content[1].video_url: it is no video that can be read",
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            "messages[0].content[1] is of type 'input_audio': audio is not supported",
        ),
    ],
    ids=["http", "a file", "no image", "large", "no video", "sound"],
)
def test_what_is_refused_is_named_with_its_rule(client: httpx.Client, part: dict[str, Any], message: str) -> None:
    response = ask(client, text("What is it?"), part)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["message"].startswith(message)
    assert error["param"].startswith("messages[0].content[1]")


def test_more_images_than_allowed_are_refused(client: httpx.Client) -> None:
    response = ask(client, *[image(CAT)] * 4)
    assert response.status_code == 400
    assert "there must be at most 3 images and videos in a request" in response.json()["error"]["message"]


def test_memory_of_all_requests_is_bounded_and_given_back(client: httpx.Client) -> None:
    large = image_file(picture(330, 300))  # 290 KB of patches
    tall = video_file(16, (300, 300), 1)  # 4.3 MB
    part = {"type": "video_url", "video_url": {"url": data_url(tall, "video/mp4")}}
    response = ask(client, part)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    gc.collect()
    for _ in range(12):
        assert ask(client, image(large), max_tokens=1).status_code == 200


def test_anthropics_image_blocks_count_and_are_seen_as_well(client: httpx.Client) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(CAT).decode()}
    body = {
        "model": "tiny",
        "max_tokens": 4,
        "messages": [{"role": "user", "content": [{"type": "image", "source": source}, text("What?")]}],
    }
    counted = client.post("/v1/messages/count_tokens", json=body | {"thinking": {"type": "disabled"}})
    answered = client.post("/v1/messages", json=body | {"thinking": {"type": "disabled"}})
    assert counted.status_code == answered.status_code == 200, answered.text
    usage = answered.json()["usage"]
    assert counted.json()["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"] > 20
