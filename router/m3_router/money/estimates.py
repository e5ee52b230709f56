"""How many input tokens a request has, as far as its bytes tell before a worker counts them.

Owns what was learnt of each model: tokens per byte of text, by sizes, and tokens per image or video. Pure; bodies are
not looked at, only their sizes. Three answers of different trust:

    bounds     what hardly any tokenizer can leave: up to a token for every byte. Knows no model and never changes.
    prior      a token for 12 to 1.5 bytes: all text of the world's languages and code, but not random characters.
    learnt     from the counts that workers reported: the smallest and largest ratio of late, 10 % wider on both sides.

An interval is the prior until MIN_SAMPLES requests of the same model and size were counted, and what was learnt
from then on. Sizes are powers of 4 of bytes, since templates and JSON weigh more in short requests. Extremes
rather than deviations, because tenants differ (languages, code): a rare kind of request keeps its room in the interval
for about a thousand others. A request outside of its interval is billed rightly all the same, by the worker's count.
"""

from typing import Final

from mypy_extensions import mypyc_attr

from m3_router.money.bill import Bill

MIN_SAMPLES: Final = 16  # of one model and size, before they replace the prior
MARGIN: Final = 0.1  # beyond what was seen, on both sides
MAX_MODELS: Final = 256  # that are learnt; names come from the configuration, so more would be a fault of the caller

PRIOR_LOW: Final = 1 / 12  # tokens per byte
PRIOR_LIKELY: Final = 1 / 4
PRIOR_HIGH: Final = 1 / 1.5
TEMPLATE_TOKENS: Final = 512  # which a template may add to a conversation: opening messages, how to call tools
# Of one image or video: M3 makes at most 576 tokens of an image and 64,000 of a video.
MEDIA_LOW_TOKENS: Final = 4
MEDIA_LIKELY_TOKENS: Final = 576
MEDIA_HIGH_TOKENS: Final = 64_000

# A count beyond this is a fault, and would be remembered long. The template of a hidden opening message may be large.
_IMPLAUSIBLE_TOKENS_PER_BYTE: Final = 4
_IMPLAUSIBLE_TEMPLATE_TOKENS: Final = 65_536

_FORGETTING: Final = 1 / 1024  # the part of its distance to the mean that an extreme loses with each sample
_NEWEST_SHARE: Final = 1 / 256  # of a sample in the mean, at least
_SIZES: Final = 24  # bit lengths up to 2 x 24: more than a body can have bytes


@mypyc_attr(free_list_len=1)
class Interval:
    """Input tokens: at least low, at most high, and most likely. low <= likely <= high."""

    __slots__ = ("high", "likely", "low")

    def __init__(self, low: int, likely: int, high: int) -> None:
        self.low = low
        self.likely = likely
        self.high = high

    def __repr__(self) -> str:
        return f"<Interval {self.low} .. {self.likely} .. {self.high}>"


class _Spread:
    """Mean and extremes of a measured quantity of late. low <= mean <= high once there is a sample."""

    __slots__ = ("high", "low", "mean", "samples")

    def __init__(self) -> None:
        self.samples: int = 0
        self.low: float = 0.0
        self.mean: float = 0.0
        self.high: float = 0.0

    def learn(self, value: float) -> None:
        self.samples += 1
        if self.samples == 1:
            self.low = self.mean = self.high = value
            return
        self.mean += (value - self.mean) * max(1.0 / float(self.samples), _NEWEST_SHARE)
        low = self.low + (self.mean - self.low) * _FORGETTING
        high = self.high - (self.high - self.mean) * _FORGETTING
        self.low = value if value < low else low
        self.high = value if value > high else high


class _Learnt:
    """What is known of one model."""

    __slots__ = ("media", "text")

    def __init__(self) -> None:
        self.text: list[_Spread] = [_Spread() for _ in range(_SIZES + 1)]  # tokens per byte, by size
        self.media: _Spread = _Spread()  # tokens of one item


class TokenEstimates:
    """Estimates for every model, better with every answer. Memory: at most MAX_MODELS times some kilobytes."""

    __slots__ = ("_models",)

    def __init__(self) -> None:
        self._models: dict[str, _Learnt] = {}

    def interval(self, model: str, text_bytes: int, media_items: int) -> Interval:
        """Between which numbers of tokens a request lies. text_bytes: of its body, without media inside of it."""
        learnt = self._models.get(model)
        size = float(text_bytes)
        spread = None if learnt is None else learnt.text[_size(text_bytes)]
        if spread is None or spread.samples < MIN_SAMPLES:
            low, likely, high = size * PRIOR_LOW, size * PRIOR_LIKELY, size * PRIOR_HIGH + TEMPLATE_TOKENS
        else:
            low, likely, high = size * spread.low * (1 - MARGIN), size * spread.mean, size * spread.high * (1 + MARGIN)
        if media_items:
            items = float(media_items)
            media = None if learnt is None else learnt.media
            if media is None or media.samples < MIN_SAMPLES:
                low += items * MEDIA_LOW_TOKENS
                likely += items * MEDIA_LIKELY_TOKENS
                high += items * MEDIA_HIGH_TOKENS
            else:
                low += items * media.low * (1 - MARGIN)
                likely += items * media.mean
                high += items * media.high * (1 + MARGIN)
        return Interval(int(low), int(likely), int(high) + 1)

    def read(self, bills: list[Bill]) -> None:
        """Learn from settled bills, where a worker has counted."""
        for bill in bills:
            if bill.outcome == "ok" and not bill.estimated and bill.status == 200:
                self.learn(bill.model, bill.text_bytes, bill.media_items, bill.input_tokens)

    def learn(self, model: str, text_bytes: int, media_items: int, actual_input_tokens: int) -> None:
        """A worker has counted a request whose prompt was text. Numbers that cannot be are left out."""
        most = (
            text_bytes * _IMPLAUSIBLE_TOKENS_PER_BYTE + _IMPLAUSIBLE_TEMPLATE_TOKENS + media_items * MEDIA_HIGH_TOKENS
        )
        if text_bytes <= 0 or not 0 < actual_input_tokens <= most:
            return
        learnt = self._models.get(model)
        if learnt is None:
            if len(self._models) >= MAX_MODELS:
                return
            learnt = self._models[model] = _Learnt()
        spread = learnt.text[_size(text_bytes)]
        if not media_items:
            spread.learn(float(actual_input_tokens) / float(text_bytes))
            return
        # The text's part is itself an estimate: only where it is the smaller one is the rest worth learning from.
        per_byte = spread.mean if spread.samples >= MIN_SAMPLES else PRIOR_LIKELY
        rest = float(actual_input_tokens) - float(text_bytes) * per_byte
        if rest * 2.0 >= float(actual_input_tokens):
            learnt.media.learn(rest / float(media_items))


def exact(tokens: int) -> Interval:
    """The interval of a number that is known."""
    return Interval(tokens, tokens, tokens)


def bounds(text_bytes: int, media_items: int) -> Interval:
    """What a promise can be founded on: byte-level tokenizers make at most one token of a byte.

    A template may still write more than it reads: an element for each number of an array in a past call's arguments.
    """
    return Interval(
        0,
        text_bytes // 4 + media_items * MEDIA_LIKELY_TOKENS,
        text_bytes + TEMPLATE_TOKENS + media_items * MEDIA_HIGH_TOKENS,
    )


def _size(text_bytes: int) -> int:
    """The class of a size: 4 ** (n - 1) <= bytes < 4 ** n."""
    size = (text_bytes.bit_length() + 1) >> 1
    return size if size < _SIZES else _SIZES
