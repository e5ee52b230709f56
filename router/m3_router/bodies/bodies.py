"""The JSON bodies that pass by, as far as they are read: the fields of a request, the usage in an answer.

Owns the shapes and their decoders, and no rule. One shape serves all dialects, because their names do not collide: a
field of another dialect is absent. What is not named here is skipped and never built; what is named and not typed
stays raw, a view into the request's bytes.

Messages are read in the same pass as the rest (at 2 MB the pass is what costs), each as its role and raw parts:
whoever needs a conversation takes `messages` and does not decode the body again. `input` of responses and embeddings
is a text or a list, and so raw: `decode_items` reads the list. Not compiled: the compiler does not
keep the types of the fields, by which msgspec reads.
"""

from typing import Annotated

import msgspec

from m3_router.bodies.absent import ABSENT

Count = Annotated[int, msgspec.Meta(ge=0)]


class Message(msgspec.Struct, gc=False):
    """One of `messages`, of chat completions and of Anthropic's."""

    role: str | None = None
    content: msgspec.Raw = ABSENT  # a string or a list of parts: `decode_parts`
    reasoning_content: msgspec.Raw = ABSENT
    reasoning: msgspec.Raw = ABSENT  # the same in the words of others
    tool_calls: msgspec.Raw = ABSENT
    tool_call_id: msgspec.Raw = ABSENT


class Item(msgspec.Struct, gc=False):
    """One of `input` of responses."""

    type: str | None = None  # None: "message"
    role: str | None = None
    content: msgspec.Raw = ABSENT
    summary: msgspec.Raw = ABSENT  # of reasoning
    call_id: msgspec.Raw = ABSENT
    name: msgspec.Raw = ABSENT
    arguments: msgspec.Raw = ABSENT
    output: msgspec.Raw = ABSENT


class Part(msgspec.Struct, gc=False):
    """One part of a content, or one block as Anthropic calls it."""

    type: str | None = None
    text: msgspec.Raw = ABSENT
    thinking: msgspec.Raw = ABSENT
    image_url: msgspec.Raw = ABSENT  # an object with `url`, or the URL itself in responses
    video_url: msgspec.Raw = ABSENT
    source: msgspec.Raw = ABSENT  # Anthropic's
    content: msgspec.Raw = ABSENT  # of a tool_result, a string or parts again
    id: msgspec.Raw = ABSENT  # these three of a tool_use
    name: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    tool_use_id: msgspec.Raw = ABSENT


class RequestBody(msgspec.Struct, gc=False):
    """A request of any dialect. In the order in which clients write it, which is the quickest to read."""

    model: str
    messages: list[Message] | None = None
    prompt: msgspec.Raw = ABSENT
    input: msgspec.Raw = ABSENT
    system: msgspec.Raw = ABSENT
    instructions: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    stream: bool | None = None
    stream_options: msgspec.Raw = ABSENT
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    service_tier: str | None = None
    priority: msgspec.Raw = ABSENT  # of engines that read it: what a client writes there is replaced
    usage: msgspec.Raw = ABSENT  # {"include": true} asks for the cost in the answer's usage
    # what belongs together
    prompt_cache_key: msgspec.Raw = ABSENT
    conversation: msgspec.Raw = ABSENT
    metadata: msgspec.Raw = ABSENT


class ResumedBody(msgspec.Struct, gc=False):
    """The same request, as far as it says whether its answer can be gone on with from the middle, and where."""

    messages: msgspec.Raw = ABSENT  # in one piece
    prompt: msgspec.Raw = ABSENT
    max_tokens: msgspec.Raw = ABSENT
    max_completion_tokens: msgspec.Raw = ABSENT
    tools: msgspec.Raw = ABSENT
    tool_choice: msgspec.Raw = ABSENT
    response_format: msgspec.Raw = ABSENT
    structured_outputs: msgspec.Raw = ABSENT
    output_config: msgspec.Raw = ABSENT
    thinking: msgspec.Raw = ABSENT
    logprobs: msgspec.Raw = ABSENT
    prompt_logprobs: msgspec.Raw = ABSENT
    return_token_ids: msgspec.Raw = ABSENT
    echo: msgspec.Raw = ABSENT
    suffix: msgspec.Raw = ABSENT
    min_tokens: msgspec.Raw = ABSENT
    continue_final_message: msgspec.Raw = ABSENT
    add_generation_prompt: msgspec.Raw = ABSENT


class StreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool | None = None


class UsageOptions(msgspec.Struct):
    """`usage` of a request."""

    include: bool | None = None


class Conversation(msgspec.Struct):
    """`conversation` of a request to responses, where it is an object."""

    id: str | None = None


class Metadata(msgspec.Struct):
    """`metadata` of a request to messages."""

    user_id: str | None = None


class UsageDetails(msgspec.Struct, gc=False):
    """`prompt_tokens_details`, or `input_tokens_details`, of a usage."""

    cached_tokens: Count | None = None
    cache_write_tokens: Count | None = None


class ReportedUsage(msgspec.Struct, gc=False):
    """`usage` as workers report it: OpenAI's older names, its newer ones (responses), and Anthropic's."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: UsageDetails | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_tokens_details: UsageDetails | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None


class AnswerUsage(msgspec.Struct, gc=False):
    """A whole answer, as far as its usage."""

    usage: ReportedUsage | None = None


class AnswerEvent(msgspec.Struct, gc=False):
    """One event of a streamed answer. The usage stands at the top, or in `message` or `response`."""

    type: str | None = None
    usage: ReportedUsage | None = None
    message: msgspec.Raw = ABSENT  # an object in Anthropic's message_start; elsewhere it may be what an error says
    response: AnswerUsage | None = None  # of the events of responses
    choices: msgspec.Raw = ABSENT
    error: msgspec.Raw = ABSENT


class ReportedError(msgspec.Struct, gc=False):
    """`error` of a worker that has failed."""

    message: str


class ReportedFailure(msgspec.Struct, gc=False):
    """The failure of a worker, in any dialect; in an event of OpenAI's responses, the message stands by itself."""

    error: ReportedError | None = None
    message: str = ""


decode_request = msgspec.json.Decoder(RequestBody).decode
decode_resumed = msgspec.json.Decoder(ResumedBody).decode
decode_items = msgspec.json.Decoder(list[Item]).decode
decode_parts = msgspec.json.Decoder(list[Part]).decode
decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
decode_stream_options = msgspec.json.Decoder(StreamOptions | None).decode
decode_usage_options = msgspec.json.Decoder(UsageOptions | None).decode
decode_conversation = msgspec.json.Decoder(str | Conversation | None).decode
decode_metadata = msgspec.json.Decoder(Metadata | None).decode
decode_text = msgspec.json.Decoder(str | None).decode
decode_answer = msgspec.json.Decoder(AnswerUsage).decode
decode_event = msgspec.json.Decoder(AnswerEvent).decode
decode_usage = msgspec.json.Decoder(ReportedUsage).decode
decode_failure = msgspec.json.Decoder(ReportedFailure).decode
