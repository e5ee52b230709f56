"""Images and video in a prompt: M3's wrapping tokens, timestamps, and a placeholder for each embedding of the tower.

Owns how one image or video is written, and where its placeholders come to stand:

    image   ]<]start of image[>[ P P P ... ]<]end of image[>[
    video   for every temporal patch: ]<]1.5 seconds[>[ and then as an image, with the video's placeholder

The checkpoint's template writes one placeholder for each, which is found here by its text: whoever calls cuts the
prompt where somebody's text has such a text in it, as `chat.prompt` does.
Source: transformers' processor of `minimax_m3_vl`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from m3_worker.media.items import Kind, MediaError, MediaItem, ProcessedMedia, Segment
from m3_worker.model.config_fields import CheckpointError
from m3_worker.model.vision_config import VisionConfig
from m3_worker.tokenizer import Tokenizer

PLACEHOLDERS: dict[Kind, str] = {"image": "]<]image[>[", "video": "]<]video[>["}
START, END = "]<]start of image[>[", "]<]end of image[>["
_PLACEHOLDER = re.compile("|".join(map(re.escape, PLACEHOLDERS.values())))


@dataclass(frozen=True, slots=True)
class ExpandedPrompt:
    """Token ids, and what stands where among them."""

    token_ids: list[int]
    items: tuple[MediaItem, ...]


def check_tokens(tokenizer: Tokenizer, config: VisionConfig) -> None:
    """Raise CheckpointError unless tokenizer.json has M3's tokens for media, with the ids that config.json names."""
    for text, token_id in (
        (PLACEHOLDERS["image"], config.image_token_id),
        (PLACEHOLDERS["video"], config.video_token_id),
        (START, None),
        (END, None),
    ):
        found = tokenizer.encode(text, add_special_tokens=False)
        if len(found) != 1 or (token_id is not None and found != [token_id]):
            expected = "one token" if token_id is None else f"token {token_id}, as config.json says"
            raise CheckpointError(f"tokenizer.json: {text} is {found}: must be {expected}")


def expand(
    pieces: Sequence[str],
    media: Sequence[ProcessedMedia],
    encode: Callable[[str], list[int]],
    config: VisionConfig,
) -> ExpandedPrompt:
    """Write all media into a prompt, which is given in pieces that are tokenised each for itself.

    Raises MediaError if the prompt's placeholders are not those of `media`, in order.
    """
    found = [text for piece in pieces for text in _PLACEHOLDER.findall(piece)]
    if found != [PLACEHOLDERS[one.kind] for one in media]:
        raise MediaError(
            f"the prompt has {len(found)} places for the {len(media)} images and videos: the texts "
            f"{' and '.join(PLACEHOLDERS.values())} must stand in no message of an assistant"
        )
    texts = map(_written, media)
    written = [_PLACEHOLDER.sub(lambda _: next(texts), piece) for piece in pieces]
    return _placed((token for text in written for token in encode(text)), media, config)


def _written(media: ProcessedMedia) -> str:
    """With one placeholder where `run_tokens` are meant: they are multiplied as ids, not as text."""
    run = START + PLACEHOLDERS[media.kind] + END
    if media.kind == "image":
        return run
    return "".join(f"]<]{seconds:.1f} seconds[>[{run}" for seconds in media.seconds)


def _placed(tokens: Iterator[int], media: Sequence[ProcessedMedia], config: VisionConfig) -> ExpandedPrompt:
    token_ids: list[int] = []
    items: list[MediaItem] = []
    runs = (run for one in media for run in _runs(one))
    for token in tokens:
        if token in (config.image_token_id, config.video_token_id):
            segment, first_row, count = next(runs)
            start = len(token_ids)
            items.append(MediaItem(start, count, segment.digest, segment.patches, segment.grid, first_row))
            token_ids += [token] * count
        else:
            token_ids.append(token)
    return ExpandedPrompt(token_ids, tuple(items))


def _runs(media: ProcessedMedia) -> Iterator[tuple[Segment, int, int]]:
    """(segment, its first embedding, embeddings) of every run of placeholders."""
    for segment in media.segments:
        for time in range(segment.grid[0]):
            yield segment, time * media.run_tokens, media.run_tokens
