"""The fields that completions and chat share: their types, their bounds, and what is refused or has no effect.

Owns the three answers to a field: it is read; or it is known and not supported, then it is refused by name, except at
the value at which it would do nothing; or nobody here knows it, then it is ignored, as M3's providers are expected to.
"""

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from m3_worker.api.errors import ApiError, field_error, shown
from m3_worker.api.structured import REPLACED
from m3_worker.grammar import Grammar
from m3_worker.model.generation_defaults import GenerationDefaults
from m3_worker.scheduling.request import SamplingParameters
from m3_worker.serving import ServedModel

MAX_STOPS = 16
MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_BIASES = 1024

# The values at which a field of a missing feature does nothing; null always is one.
WITHOUT_EFFECT_AT: dict[str, tuple[object, ...]] = {
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1, 1.0),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "prompt_logprobs": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}

TokenId = Annotated[int, Field(ge=0)]
ChoiceCount = Annotated[int, Field(ge=1, le=MAX_CHOICES)]
"""How many answers: `n` and `best_of`."""


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = False
    include_obfuscation: bool | None = False
    """Accepted; nothing is padded."""


class GenerationFields(BaseModel):
    """What every request for tokens may say. Nothing is coerced: "5" is not a number."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    model: str
    max_tokens: int | None = Field(None, ge=1)
    max_total_tokens: int | None = Field(None, ge=1)
    """Of prompt and answer together, beside max_tokens. Not OpenAI's: what goes on with an answer is bound by it."""
    min_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="0 and -1 are no limit")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    """Token ids as texts, which is all that JSON allows, to what is added to their logits."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=256)
    ignore_eos: bool | None = False
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = False

    @field_validator("stop")
    @classmethod
    def _stop_strings_are_few_and_not_empty(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > MAX_STOPS:
            raise ValueError(f"must have at most {MAX_STOPS} strings, not {len(stops)}")
        if not all(0 < len(stop) <= 1000 for stop in stops):
            raise ValueError("must have strings of 1 to 1000 characters")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _biases_are_within_bounds(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        biases = value or {}
        if len(biases) > MAX_BIASES:
            raise ValueError(f"must have at most {MAX_BIASES} tokens, not {len(biases)}")
        for key, bias in biases.items():
            if not re.fullmatch(r"0|[1-9][0-9]{0,8}", key):
                raise ValueError(f"{shown(key)} is no token id")
            if not -100 <= bias <= 100:
                raise ValueError(f"a bias must be from -100 to 100, not {bias}")
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def streams_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def asked_max_tokens(self) -> tuple[str, int | None]:
        """The field that limits the answer, and its value."""
        return "max_tokens", self.max_tokens

    def sampling(
        self, model: ServedModel, prompt_tokens: int, logprobs: int | None, grammar: Grammar | None = None
    ) -> SamplingParameters:
        """How tokens are chosen for a prompt of that length; what is not said comes from the checkpoint.

        Raises ApiError 400 if the prompt and the answer do not fit the context, with the numbers.
        """
        stop_token_ids = frozenset(self.stop_token_ids or ())
        biases = {int(token): bias for token, bias in (self.logit_bias or {}).items() if bias}
        _check_vocabulary("stop_token_ids", stop_token_ids, model.vocab_size)
        _check_vocabulary("logit_bias", biases, model.vocab_size)
        if self.ignore_eos and grammar is not None:
            message = "ignore_eos is true: an answer that must look like something has to end where it is complete"
            raise ApiError(400, message, param="ignore_eos", code="invalid_value")
        max_tokens = self._max_tokens(model.max_context_tokens, prompt_tokens)
        min_tokens = self.min_tokens or 0
        if min_tokens > max_tokens:
            message = f"min_tokens is {min_tokens}: the answer can have at most {max_tokens}"
            raise ApiError(400, message, param="min_tokens", code="invalid_value")
        defaults: GenerationDefaults = model.defaults
        return SamplingParameters(
            max_tokens=max_tokens,
            temperature=defaults.temperature if self.temperature is None else self.temperature,
            top_p=defaults.top_p if self.top_p is None else self.top_p,
            top_k=defaults.top_k if self.top_k is None else max(self.top_k, 0),
            seed=self.seed,
            stop_token_ids=stop_token_ids if self.ignore_eos else stop_token_ids | model.eos_token_ids,
            min_tokens=min_tokens,
            logprobs=logprobs,
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=tuple(biases.items()),
            grammar=grammar,
        )

    def _max_tokens(self, context: int, prompt_tokens: int) -> int:
        """The most tokens the answer may have: what is asked for, else what is left of the context."""
        name, asked = self.asked_max_tokens
        if prompt_tokens >= context:
            message = f"the prompt has {prompt_tokens} tokens: the context holds {context}, one of them for the answer"
            raise ApiError(400, message, param="prompt", code="context_length_exceeded")
        if self.max_total_tokens is not None:
            left = self.max_total_tokens - prompt_tokens
            if left < 1:
                message = f"max_total_tokens is {self.max_total_tokens}: the prompt alone has {prompt_tokens}"
                raise ApiError(400, message, param="max_total_tokens", code="invalid_value")
            asked = left if asked is None else min(asked, left)
        if asked is not None and prompt_tokens + asked > context:
            message = (
                f"{name} is {asked}: with {prompt_tokens} prompt tokens that makes {prompt_tokens + asked}, "
                f"the context holds {context}"
            )
            raise ApiError(400, message, param=name, code="context_length_exceeded")
        return context - prompt_tokens if asked is None else asked


Fields = TypeVar("Fields", bound=GenerationFields)


def parse_fields(kind: type[Fields], body: Mapping[str, Any]) -> Fields:
    """The fields of a request. Raises ApiError 400 for the first that is wrong or unsupported."""
    for name, neutral in WITHOUT_EFFECT_AT.items():
        value = body.get(name)
        is_read = name in kind.model_fields
        if value is not None and not is_read and not any(type(value) is type(one) and value == one for one in neutral):
            raise ApiError(400, _unsupported(name, value, neutral), param=name, code="unsupported_field")
    for name, successor in REPLACED.items():
        if body.get(name) is not None:
            raise ApiError(400, f"{name} is no longer a field: use {successor}", param=name, code="unsupported_field")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise field_error(error, kind.model_fields) from None


def _check_vocabulary(name: str, token_ids: Collection[int], vocab_size: int) -> None:
    if token_ids and max(token_ids) >= vocab_size:
        message = f"{name} has {max(token_ids)}: the model has {vocab_size} tokens"
        raise ApiError(400, message, param=name, code="invalid_value")


def _unsupported(name: str, value: object, neutral: tuple[object, ...]) -> str:
    allowed = f"; only {' or '.join(map(shown, neutral))} is accepted" if neutral else ""
    return f"{name} is {shown(value)}: this version does not support it{allowed}"
