"""The body of `POST /v1/chat/completions`, read into a conversation and the parameters of its answers.

Owns OpenAI's fields with MiniMax's `thinking` and vLLM's `chat_template_kwargs`. Thinking is adaptive unless one of
them, or `reasoning_effort`, says otherwise; those that are given must not disagree.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from m3_worker.api.errors import shown
from m3_worker.api.fields import MAX_LOGPROBS, ChoiceCount, GenerationFields
from m3_worker.api.structured import StructuredFields
from m3_worker.chat.conversation import THINKING_MODES, ChatError, Conversation, ResponseFormat, Thinking
from m3_worker.chat.messages import parse_messages
from m3_worker.chat.tools import parse_tool_choice, parse_tools
from m3_worker.grammar import GrammarSpec

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_NO_EFFORT = ("none", "minimal")
_MODE = "thinking_mode"


class ThinkingFields(BaseModel):
    """`thinking`: whether the model thinks before it answers. A budget has no effect: M3 has none."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Thinking


class ConversationFields(BaseModel):
    """What a body says about the conversation; chat completions and `/tokenize` have it in common."""

    model_config = ConfigDict(strict=True, extra="ignore")

    messages: Any
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = True
    thinking: ThinkingFields | None = None
    reasoning_effort: Effort | None = None
    """M3 has no levels: none and minimal switch thinking off, any other on."""
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = False
    """Whether the last message, the assistant's, is gone on with instead of being followed by another."""
    add_generation_prompt: bool | None = None
    """vLLM's; must be false or absent where the last message is gone on with, and true or absent elsewhere."""

    def conversation(self, answer: GrammarSpec | None = None) -> Conversation:
        """The conversation that these fields mean; `answer` is what it has to look like. Raises ChatError."""
        tools = parse_tools(self.tools)
        variables = dict(self.chat_template_kwargs or {})
        thinking = self._thinking(variables.pop(_MODE, None))
        continues = bool(self.continue_final_message)
        if self.add_generation_prompt is continues:
            raise ChatError(
                "add_generation_prompt",
                f"add_generation_prompt is {shown(continues)}: with continue_final_message {shown(continues)} it must "
                f"be {shown(not continues)}",
            )
        return Conversation(
            messages=parse_messages(self.messages),
            tools=tools,
            tool_choice=parse_tool_choice(
                self.tool_choice, parallel=self.parallel_tool_calls is not False, has_tools=bool(tools)
            ),
            thinking=thinking,
            response_format=ResponseFormat(answer.kind, answer.text) if answer is not None else None,
            template_variables=variables,
            continues=continues,
        )

    def _thinking(self, mode: object) -> Thinking:
        """How the model is to think. Raises ChatError if two fields disagree."""
        if mode is not None and mode not in THINKING_MODES:
            where = f"chat_template_kwargs.{_MODE}"
            raise ChatError(where, f"{where} is {shown(mode)}: must be one of {', '.join(THINKING_MODES)}")
        said: dict[str, object] = {
            "thinking.type": self.thinking.type if self.thinking else None,
            f"chat_template_kwargs.{_MODE}": mode,
        }
        said = {name: value for name, value in said.items() if value is not None}
        if not said and self.reasoning_effort is not None:
            return "disabled" if self.reasoning_effort in _NO_EFFORT else "enabled"
        if len(set(said.values())) > 1:
            both = " and ".join(f"{name} is {value}" for name, value in said.items())
            raise ChatError("thinking", f"{both}: give one of them")
        return next((one for one in THINKING_MODES if one in said.values()), "adaptive")


class ChatFields(GenerationFields, StructuredFields, ConversationFields):
    """The body of `POST /v1/chat/completions`."""

    max_completion_tokens: int | None = Field(None, ge=1)
    n: ChoiceCount | None = 1
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _fields_agree(self) -> "ChatFields":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        limits = (self.max_tokens, self.max_completion_tokens)
        if None not in limits and limits[0] != limits[1]:
            raise ValueError(f"max_tokens is {limits[0]} and max_completion_tokens is {limits[1]}: give one of them")
        return self

    @property
    def answers(self) -> int:
        """How many answers are wanted."""
        return self.n or 1

    @property
    def wanted_logprobs(self) -> int | None:
        """Alternatives to report for each token; None reports nothing."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def asked_max_tokens(self) -> tuple[str, int | None]:
        """The field that limits the answer, and its value."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().asked_max_tokens
