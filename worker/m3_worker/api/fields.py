"""The fields that completions and chat share: their types, their bounds, and what is refused or has no effect.

Owns the three answers to a field: it is read, it is accepted without effect because it is about someone else (billing,
caching, tracing), or it is refused by name. A field of a feature that this version lacks is accepted at the value at
which it would do nothing.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from m3_worker.api.errors import ApiError, field_error, shown
from m3_worker.generation_defaults import GenerationDefaults
from m3_worker.request import SamplingParameters
from m3_worker.serving import ServedModel

MAX_STOPS = 16
MAX_LOGPROBS = 20

ACCEPTED_WITHOUT_EFFECT = frozenset(
    {
        "cache_salt",
        "metadata",
        "parallel_tool_calls",
        "priority",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)

# The values at which a field of a missing feature does nothing; null always is one.
WITHOUT_EFFECT_AT: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0, 0.0),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "min_p": (0, 0.0),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0, 0.0),
    "reasoning_effort": (),
    "repetition_penalty": (1, 1.0),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}

TokenId = Annotated[int, Field(ge=0)]


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = False
    include_obfuscation: bool | None = False
    """Accepted; nothing is padded."""


class GenerationFields(BaseModel):
    """What every request for tokens may say. Nothing is coerced: "5" is not a number."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    beside: ClassVar[frozenset[str]] = ACCEPTED_WITHOUT_EFFECT | WITHOUT_EFFECT_AT.keys()

    model: str
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="0 and -1 are no limit")
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

    def sampling(self, model: ServedModel, prompt_tokens: int, logprobs: int | None) -> SamplingParameters:
        """How tokens are chosen for a prompt of that length; what is not said comes from the checkpoint.

        Raises ApiError 400 if the prompt and the answer do not fit the context, with the numbers.
        """
        stop_token_ids = frozenset(self.stop_token_ids or ())
        beyond = [token for token in stop_token_ids if token >= model.vocab_size]
        if beyond:
            message = f"stop_token_ids has {max(beyond)}: the model has {model.vocab_size} tokens"
            raise ApiError(400, message, param="stop_token_ids", code="invalid_value")
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
        )

    def _max_tokens(self, context: int, prompt_tokens: int) -> int:
        """The most tokens the answer may have: what is asked for, else what is left of the context."""
        name, asked = self.asked_max_tokens
        if prompt_tokens >= context:
            message = f"the prompt has {prompt_tokens} tokens: the context holds {context}, one of them for the answer"
            raise ApiError(400, message, param="prompt", code="context_length_exceeded")
        if asked is not None and prompt_tokens + asked > context:
            message = (
                f"{name} is {asked}: with {prompt_tokens} prompt tokens that makes {prompt_tokens + asked}, "
                f"the context holds {context}"
            )
            raise ApiError(400, message, param=name, code="context_length_exceeded")
        return context - prompt_tokens if asked is None else asked


Fields = TypeVar("Fields", bound=GenerationFields)


def parse_fields(kind: type[Fields], body: Mapping[str, Any]) -> Fields:
    """The fields of a request. Raises ApiError 400 for the first that is wrong, unsupported or unknown."""
    for name, neutral in WITHOUT_EFFECT_AT.items():
        value = body.get(name)
        if value is not None and not any(type(value) is type(one) and value == one for one in neutral):
            raise ApiError(400, _unsupported(name, value, neutral), param=name, code="unsupported_field")
    read = {name: value for name, value in body.items() if name not in kind.beside}
    try:
        return kind.model_validate(read)
    except ValidationError as error:
        raise field_error(error, [*kind.model_fields, *kind.beside]) from None


def _unsupported(name: str, value: object, neutral: tuple[object, ...]) -> str:
    allowed = f"; only {' or '.join(map(shown, neutral))} is accepted" if neutral else ""
    return f"{name} is {shown(value)}: this version does not support it{allowed}"
