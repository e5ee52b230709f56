"""Loading: what a checkpoint and the settings make together, and what is refused before a weight is read."""

from pathlib import Path
from typing import Any

import pytest
import torch

from m3_worker.cache_size import CacheSizeError
from m3_worker.config import TinySettings, WorkerSettings
from m3_worker.loading import load_served_model
from m3_worker.model.cache import PagedCache
from m3_worker.model.config import CheckpointError
from m3_worker.scheduling.pages import Pages
from m3_worker.scheduling.request import Request, SamplingParameters, Sequence
from m3_worker.serving import ServedModel
from m3_worker.tiny import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory: Path = tmp_path_factory.mktemp("models") / "tiny-m3"
    write_checkpoint(TinySettings(directory=directory, layers=2, experts=4, context=512))
    return directory


def load(directory: Path, **settings: Any) -> tuple[ServedModel, list[tuple[int, int]]]:
    told: list[tuple[int, int]] = []
    model = load_served_model(
        WorkerSettings(model=directory, device="cpu", **settings), lambda read, needed: told.append((read, needed))
    )
    return model, told


def test_a_checkpoint_is_served_with_its_own_name_context_and_defaults(checkpoint: Path) -> None:
    model, told = load(checkpoint)
    assert (model.name, model.max_context_tokens, model.vocab_size) == ("tiny-m3", 512, 270)
    assert (model.defaults.temperature, model.defaults.top_p, model.defaults.top_k) == (1.0, 0.95, 40)
    assert model.eos_token_ids == {model.tokenizer.id_of("[e~[")}
    assert model.template is not None
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1] > 0


def test_host_memory_keeps_as_many_tokens_as_the_settings_say(checkpoint: Path) -> None:
    model, _ = load(checkpoint, host_cache_tokens=100, max_concurrent=1, max_context_tokens=64)
    pages = model.engine.pages
    serve_whole(pages, [1] * 49)
    serve_whole(pages, [2] * 64)
    assert pages.host_pages == 3
    assert len(pages.take_copies()) == 3


def serve_whole(pages: Pages, prompt: list[int]) -> None:
    served = Sequence(Request("x", prompt, SamplingParameters(max_tokens=1)))
    assert pages.admit(served, pages.found(served)) == 0
    served.admit(0)
    served.advance(len(prompt))
    pages.commit(served)
    pages.release("x")


def test_torch_computes_on_as_many_threads_as_are_asked_for(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    load(checkpoint, threads=7)
    assert asked[0] == 7
    asked.clear()
    load(checkpoint)
    assert set(asked) <= {1}  # a small step's


def test_a_context_that_the_cache_cannot_hold_is_refused_before_the_weights_are_read(checkpoint: Path) -> None:
    told: list[tuple[int, int]] = []
    settings = WorkerSettings(model=checkpoint, device="cpu", max_context_tokens=512, cache_tokens=256)
    with pytest.raises(CacheSizeError, match="one sequence of 512 tokens needs 32 pages of 16 tokens"):
        load_served_model(settings, lambda read, needed: told.append((read, needed)))
    assert told == []


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such directory"):
        load(tmp_path / "nowhere")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none_is_refused(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="--device cuda: torch sees no CUDA device here"):
        load_served_model(WorkerSettings(model=checkpoint, device="cuda"), lambda read, needed: None)


@pytest.mark.parametrize(
    ("settings", "dtypes"),
    [
        ({}, (torch.float32, torch.float32)),
        ({"dtype": "bfloat16"}, (torch.bfloat16, torch.bfloat16)),
        ({"cache_dtype": "fp8"}, (torch.float8_e4m3fn, torch.float8_e4m3fn)),
        ({"cache_dtype": "bfloat16", "index_cache_dtype": "fp8"}, (torch.bfloat16, torch.float8_e4m3fn)),
    ],
)
def test_the_cache_has_the_types_that_are_asked_for(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    caches = []
    allocate = PagedCache.allocate

    def watched(*arguments: Any) -> PagedCache:
        caches.append(allocate(*arguments))
        return caches[0]

    monkeypatch.setattr(PagedCache, "allocate", watched)
    load(checkpoint, **settings)
    (cache,) = caches
    assert (cache.k.dtype, cache.index_k.dtype) == dtypes
    assert cache.v.dtype == cache.k.dtype
