"""Prompts with images and video give what transformers gives: token ids, logits, greedy tokens, however they are cut.

The pixels are the same on both sides here; that our own preprocessing makes the same ones is test_media_processor's.
Prompts run beyond block x top-k tokens, so that attention is sparse.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from m3_media import image_file, picture, video_file
from m3_oracles import hf
from m3_oracles.native import Native, load
from m3_worker.config import TinySettings
from m3_worker.media.decode import decode_image, decode_video
from m3_worker.media.items import MediaLimits, ProcessedMedia
from m3_worker.media.prompt import ExpandedPrompt, expand
from m3_worker.model.m3 import M3Model
from m3_worker.model.vision import normalised
from m3_worker.model.vision_config import VisionConfig
from m3_worker.tiny import write_checkpoint
from m3_worker.tokenizer import Tokenizer

pytestmark = pytest.mark.xdist_group("oracles")

TOLERANCE = 1e-4
GREEDY_TOKENS = 32
IMAGE, VIDEO = "]<]image[>[", "]<]video[>["


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("media")
    write_checkpoint(TinySettings(directory=directory, seed=11, layers=3, block=8, topk=3))
    return directory


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> M3Model:
    return load(checkpoint)


@pytest.fixture(scope="module")
def config(model: M3Model) -> VisionConfig:
    assert model.config.vision is not None
    return model.config.vision


Prompt = tuple[str, list[ProcessedMedia]]


@pytest.fixture(scope="module")
def prompts(config: VisionConfig) -> dict[str, Prompt]:
    def image(width: int, height: int, seed: int) -> ProcessedMedia:
        return decode_image(image_file(picture(width, height, seed)), config, MediaLimits())

    def video(frames: int, size: tuple[int, int], seed: int) -> ProcessedMedia:
        return decode_video(video_file(frames, size, 1, seed=seed), config, MediaLimits())

    return {
        "one image": (f"]~b]user\nWhat is {IMAGE}?[e~[\n]~b]ai\n", [image(300, 200, 1)]),
        "images of several sizes, and text between": (
            f"{IMAGE}first, then{IMAGE} and a wide one: {IMAGE}. Compare them.",
            [image(56, 56, 2), image(140, 280, 3), image(600, 60, 4)],
        ),
        "the same image twice, side by side": (f"a{IMAGE}{IMAGE}b", [image(84, 84, 5), image(84, 84, 5)]),
        "a video of two segments": (f"Watch {VIDEO} to its end.", [video(11, (80, 60), 6)]),
        "a video between images": (
            f"{IMAGE} before, {VIDEO} meanwhile, {IMAGE} after",
            [image(90, 60, 7), video(5, (56, 84), 8), image(60, 90, 9)],
        ),
    }


NAMES = [
    "one image",
    "images of several sizes, and text between",
    "the same image twice, side by side",
    "a video of two segments",
    "a video between images",
]


@pytest.fixture(scope="module")
def expanded(checkpoint: Path, config: VisionConfig, prompts: dict[str, Prompt]) -> dict[str, ExpandedPrompt]:
    tokenizer = Tokenizer.load(checkpoint)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    return {name: expand([text], media, encode, config) for name, (text, media) in prompts.items()}


def oracle_inputs(media: list[ProcessedMedia]) -> dict[str, Tensor]:
    """Pixels and grids of images, and of videos' segments, as the library names them."""
    inputs: dict[str, Tensor] = {}
    for kind, pixels, grid in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        segments = [segment for one in media if one.kind == kind for segment in one.segments]
        if segments:
            parts = [normalised(torch.from_numpy(np.ascontiguousarray(segment.patches))) for segment in segments]
            inputs[pixels] = torch.cat(parts).flatten(1)
            inputs[grid] = torch.tensor([segment.grid for segment in segments])
    return inputs


@pytest.mark.parametrize("name", NAMES)
def test_token_ids_are_those_of_transformers_processor(
    checkpoint: Path, prompts: dict[str, Prompt], expanded: dict[str, ExpandedPrompt], name: str
) -> None:
    """The library expands the same text; it is given the sizes by its own processors, which see blank pictures."""
    from transformers import (
        MiniMaxM3VLImageProcessor,
        MiniMaxM3VLProcessor,
        MiniMaxM3VLVideoProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.video_utils import VideoMetadata

    text, media = prompts[name]
    processor = MiniMaxM3VLProcessor(
        image_processor=MiniMaxM3VLImageProcessor(),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(checkpoint),
        video_processor=MiniMaxM3VLVideoProcessor(),
    )
    images, videos, metadata = [], [], []
    for one in media:
        _, height, width = one.segments[0].grid
        times = sum(segment.grid[0] for segment in one.segments)
        if one.kind == "image":
            images.append(torch.zeros(3, 14 * height, 14 * width, dtype=torch.uint8))
        else:
            videos.append(torch.zeros(2 * times, 3, 14 * height, 14 * width, dtype=torch.uint8))
            numbers = [int(seconds) for seconds in one.seconds for _ in range(2)]
            metadata.append(VideoMetadata(total_num_frames=2 * times, fps=1.0, frames_indices=numbers))
    found = processor(
        text=text, images=images or None, videos=videos or None, video_metadata=metadata or None, return_tensors="pt"
    )
    assert expanded[name].token_ids == found["input_ids"][0].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_greedy_tokens_are_those_of_transformers(
    checkpoint: Path, model: M3Model, prompts: dict[str, Prompt], expanded: dict[str, ExpandedPrompt], name: str
) -> None:
    inputs, prompt = oracle_inputs(prompts[name][1]), expanded[name]
    expected = hf.logits(checkpoint, prompt.token_ids, **inputs)
    found = Native(model, media={name: prompt.items}).step({name: prompt.token_ids})[name]
    assert (found - expected).abs().max() < TOLERANCE
    greedy = Native(model, media={name: prompt.items}).greedy({name: prompt.token_ids}, GREEDY_TOKENS)[name]
    assert greedy == hf.greedy(checkpoint, prompt.token_ids, GREEDY_TOKENS, **inputs)


@pytest.mark.parametrize("sizes", [(1, 5), (7, 0, 50, 1), (23,)])
def test_chunks_that_cut_through_media_and_company_in_the_batch_change_nothing(
    model: M3Model, expanded: dict[str, ExpandedPrompt], sizes: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(0, 256, (70,), generator=generator).tolist()
    sequences = {"text alone": text, **{name: prompt.token_ids for name, prompt in expanded.items()}}
    media = {name: prompt.items for name, prompt in expanded.items()}
    together = Native(model, media=media).chunked(sequences, sizes)
    for name, tokens in sequences.items():
        alone = Native(model, media=media).step({name: tokens})[name]
        assert (together[name] - alone).abs().max() < TOLERANCE, name


def test_embeddings_that_were_dropped_are_computed_again(
    model: M3Model, expanded: dict[str, ExpandedPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no room to keep any, two sequences that take turns drive out each other's; with room, each is made once."""
    names = ["one image", "a video of two segments"]
    sequences = {name: expanded[name].token_ids for name in names}
    media = {name: expanded[name].items for name in names}
    seen = count_calls(model, monkeypatch)
    kept = Native(model, media=media).chunked(sequences, (6, 9))
    assert len(seen) == 3
    seen.clear()
    dropped = Native(model, media=media, kept_bytes=0).chunked(sequences, (6, 9))
    assert len(seen) > 6
    for name in names:
        assert torch.equal(kept[name], dropped[name])


def test_the_same_content_is_seen_once(
    model: M3Model, expanded: dict[str, ExpandedPrompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = expanded["the same image twice, side by side"]
    seen = count_calls(model, monkeypatch)
    Native(model, media={"a": prompt.items, "b": prompt.items}).chunked(
        {"a": prompt.token_ids, "b": prompt.token_ids}, (10,)
    )
    assert len(seen) == 1


def test_what_an_image_shows_matters(model: M3Model, expanded: dict[str, ExpandedPrompt]) -> None:
    prompt = expanded["one image"]
    seen = Native(model, media={"a": prompt.items}).step({"a": prompt.token_ids})["a"]
    blind = Native(model).step({"a": prompt.token_ids})["a"]
    start = prompt.items[0].start
    assert (seen[:start] - blind[:start]).abs().max() < TOLERANCE
    assert (seen[start:] - blind[start:]).abs().amax(dim=1).min() > 100 * TOLERANCE


def count_calls(model: M3Model, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A list that gets one entry for every segment that the tower sees."""
    assert model.vision is not None
    seen: list[object] = []
    embed: Callable[..., Tensor] = model.vision.embed

    def counting(patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        seen.append(grid)
        return embed(patches, grid)

    monkeypatch.setattr(model.vision, "embed", counting)
    return seen
