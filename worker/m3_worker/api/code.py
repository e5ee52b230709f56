"""`POST /v1/code/generate` and `POST /v1/code/review`: a task or code in, one structured answer out.

M3's product endpoints. Owns their requests, the two instructions, and the JSON schemas of the two results; everything
else is chat: the answer is held to its schema while it is written, after any thinking. There is no stream: half a
result is of no use. An answer that reaches its limit is `incomplete`: it has no result, but the text as far as it came.
"""

import json
import time
import uuid
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from m3_worker.api.errors import ApiError, json_response
from m3_worker.api.fields import GenerationFields
from m3_worker.api.generation import Delta
from m3_worker.api.incoming import INLINE_BYTES, Incoming, off_loop, parse_object, receive_request
from m3_worker.api.streams import whole_answer
from m3_worker.api.turns import Turn, TurnRequest, request_turn
from m3_worker.chat.conversation import Conversation, Message, ResponseFormat, Thinking
from m3_worker.scheduling.request import FinishReason
from m3_worker.serving import WorkerState

GENERATION_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "summary": {"type": "string", "description": "What was written and why, in a few sentences."},
        "files": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "path": {"type": "string", "minLength": 1},
                    "language": {"type": "string"},
                    "content": {"type": "string", "description": "The whole file."},
                },
                "required": ["path", "language", "content"],
                "additionalProperties": False,
            },
        },
        "notes": {"type": "array", "items": {"type": "string"}, "description": "What the user should know or check."},
    },
    "required": ["summary", "files", "notes"],
    "additionalProperties": False,
}
REVIEW_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "summary": {"type": "string"},
        "verdict": {"enum": ["approve", "comment", "request_changes"]},
        "findings": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "path": {"type": ["string", "null"]},
                    "line": {"type": ["integer", "null"], "minimum": 1},
                    "severity": {"enum": ["critical", "major", "minor", "info"]},
                    "title": {"type": "string"},
                    "detail": {"type": "string"},
                    "suggestion": {"type": ["string", "null"], "description": "Code to put in its place."},
                },
                "required": ["path", "line", "severity", "title", "detail", "suggestion"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["summary", "verdict", "findings"],
    "additionalProperties": False,
}
_GENERATE = (
    "You write code. Do the user's task and answer with one JSON object: a summary, every file whole, and notes on "
    "what to check. Change nothing that the task does not ask for."
)
_REVIEW = (
    "You review code. Answer with one JSON object: a summary, a verdict, and the findings, gravest first, each with "
    "the file and line that it is about. Report only what you can show in the code."
)


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class ThinkingSwitch(_Fields):
    """`thinking`, as in chat completions."""

    type: Thinking


class CodeFile(_Fields):
    """One file, whole."""

    path: str = Field(min_length=1, max_length=4096)
    content: str


class CodeFields(_Fields):
    """What both requests have."""

    model: str
    files: list[CodeFile] | None = Field(None, max_length=1000)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    thinking: ThinkingSwitch | None = None
    """Adaptive if it is left out."""
    stream: Literal[False] | None = False

    @property
    def generation(self) -> GenerationFields:
        """How tokens are chosen, in the words of the other dialects."""
        names = ("model", "max_tokens", "temperature", "seed")
        return GenerationFields(**{name: getattr(self, name) for name in names})


class GenerateFields(CodeFields):
    """The body of `POST /v1/code/generate`: a task, and the files that it is about."""

    task: str = Field(min_length=1)
    language: str | None = Field(None, min_length=1, max_length=100)

    @property
    def prompt(self) -> str:
        """The user's message."""
        language = [f"Language: {self.language}"] if self.language else []
        return "\n\n".join([f"Task: {self.task}", *language, *map(_shown_file, self.files or ())])


class ReviewFields(CodeFields):
    """The body of `POST /v1/code/review`: files, a diff, or both, and what to look for."""

    diff: str | None = None
    instructions: str | None = None

    @model_validator(mode="after")
    def _something_is_to_be_reviewed(self) -> "ReviewFields":
        if not self.files and not self.diff:
            raise ValueError("give files or diff: there is nothing to review")
        return self

    @property
    def prompt(self) -> str:
        """The user's message."""
        wish = [f"Look for: {self.instructions}"] if self.instructions else []
        diff = [f"Diff:\n{_fenced(self.diff)}"] if self.diff else []
        return "\n\n".join(["Review this.", *wish, *map(_shown_file, self.files or ()), *diff])


@dataclass(frozen=True, slots=True)
class _Product:
    """What tells the two endpoints apart."""

    kind: str
    fields: type[GenerateFields] | type[ReviewFields]
    instructions: str
    schema: dict[str, Any]


_PRODUCTS = {
    "generate": _Product("code.generation", GenerateFields, _GENERATE, GENERATION_SCHEMA),
    "review": _Product("code.review", ReviewFields, _REVIEW, REVIEW_SCHEMA),
}


def code_routes(state: WorkerState) -> APIRouter:
    """The routes of these endpoints."""
    router = APIRouter()

    @router.post("/v1/code/generate")
    async def generate(request: Request) -> Response:
        return await _serve(request, state, _PRODUCTS["generate"])

    @router.post("/v1/code/review")
    async def review(request: Request) -> Response:
        return await _serve(request, state, _PRODUCTS["review"])

    return router


async def _serve(request: Request, state: WorkerState, product: _Product) -> Response:
    incoming = await receive_request(request, state)
    asked = await off_loop(max(incoming.body_bytes, INLINE_BYTES + 1), _prepare, incoming, product)
    turn = asked.start()
    return await whole_answer(turn.generation, request.receive, lambda delta: _answer(turn, delta, product))


def _prepare(incoming: Incoming, product: _Product) -> TurnRequest:
    if incoming.body.get("stream"):
        message = "stream is true: the answer is one object, half of it is of no use"
        raise ApiError(400, message, param="stream", code="unsupported_field")
    fields = parse_object(product.fields, incoming.body)
    conversation = Conversation(
        messages=(Message("developer", product.instructions), Message("user", fields.prompt)),
        thinking=fields.thinking.type if fields.thinking else "adaptive",
        response_format=ResponseFormat("json_schema", json.dumps(product.schema)),
    )
    return request_turn(incoming, conversation, fields.generation)


def _answer(turn: Turn, delta: Delta, product: _Product) -> Response:
    turn.push(delta)
    text = "".join(block.text for block in turn.blocks if block.kind == "text")
    is_whole = delta.finish_reason is FinishReason.STOP
    body = {
        "id": f"code-{uuid.uuid4().hex}",
        "object": product.kind,
        "created": int(time.time()),
        "model": turn.generation.model.name,
        "status": "completed" if is_whole else "incomplete",
        "result": json.loads(text) if is_whole else None,
        "incomplete_text": None if is_whole else text,
        "usage": turn.generation.usage(),
    }
    return json_response(body, headers=turn.generation.headers())


def _shown_file(file: CodeFile) -> str:
    return f"File {file.path}:\n{_fenced(file.content)}"


def _fenced(text: str) -> str:
    """In a fence that is longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
