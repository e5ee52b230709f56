"""The vision tower sees what transformers' sees on the same checkpoint, for every shape of image and video."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m3_oracles import hf, native
from m3_worker.config import TinySettings
from m3_worker.model.vision import Grid, VisionTower, normalised, rotary_3d
from m3_worker.tiny import write_checkpoint

pytestmark = pytest.mark.xdist_group("oracles")

TOLERANCE = 2e-5
SEGMENT = 4  # temporal patches


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("vision")
    write_checkpoint(TinySettings(directory=directory, seed=3, layers=1, dense_layers=1))
    return directory


@pytest.fixture(scope="module")
def tower(checkpoint: Path) -> VisionTower:
    model = native.load(checkpoint)
    assert model.config.vision is not None
    assert model.weights.vision is not None
    return VisionTower(model.config.vision, model.weights.vision)


def random_patches(grid: Grid, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    time, height, width = grid
    return torch.randint(0, 256, (time * height * width, 3, 2, 14, 14), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("grid", [(1, 4, 4), (1, 2, 18), (1, 14, 6), (3, 4, 2), (4, 2, 2), (5, 2, 4), (9, 2, 2)])
def test_embeddings_are_those_of_transformers(checkpoint: Path, tower: VisionTower, grid: Grid) -> None:
    patches = random_patches(grid)
    segments = [[min(SEGMENT, grid[0] - start), *grid[1:]] for start in range(0, grid[0], SEGMENT)]
    pixels = normalised(patches).flatten(1)
    expected = torch.cat(hf.image_features(checkpoint, pixels, torch.tensor(segments)))
    embeddings = tower.embed(patches, grid)
    assert embeddings.shape == expected.shape
    assert (embeddings - expected).abs().max() < TOLERANCE
    assert expected.std() > 0.1


def test_a_patch_sees_its_whole_segment_and_no_other(tower: VisionTower) -> None:
    grid = (SEGMENT + 1, 2, 2)
    patches = random_patches(grid)
    before = tower.embed(patches, grid)
    patches[0] = 255 - patches[0]  # of the first segment
    changed = (tower.embed(patches, grid) - before).abs().amax(dim=1) > 1e-4
    assert changed.tolist() == [True] * SEGMENT + [False]


def test_places_are_counted_square_by_square(tower: VisionTower) -> None:
    """Two squares of 2 x 2 patches side by side: the first four angles are the left square's."""
    config = tower.config
    cos, sin = rotary_3d((1, 2, 4), config, torch.device("cpu"))
    angles = torch.atan2(sin, cos)
    fastest = angles[:, [0, config.axis_dim // 2, config.axis_dim]]  # the first frequency of each axis turns 1 a patch
    assert fastest.round().int().tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [0, 1, 0],
        [0, 1, 1],
        [0, 0, 2],
        [0, 0, 3],
        [0, 1, 2],
        [0, 1, 3],
    ]


def test_colours_are_normalised_as_clip_was_trained() -> None:
    grey = torch.full((1, 3, 2, 2, 2), 128, dtype=torch.uint8)
    expected = [(128 / 255 - 0.48145466) / 0.26862954, (128 / 255 - 0.4578275) / 0.26130258]
    assert torch.allclose(normalised(grey)[0, :2, 0, 0, 0], torch.tensor(expected), atol=1e-6)
