"""The settings of one worker process, of a tiny checkpoint, and of a rank: read from a command line or an environment.

Owns the fields, their bounds and their flags; every field is one flag. Imports pydantic and the standard library only,
so that the operator renders what a worker parses: `parse_arguments(settings.arguments()) == settings`.
Does not own what a checkpoint says (model_config) nor how "auto" is resolved (server, cache_size).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Count = Annotated[int, Field(ge=1, le=2**31)]
CacheType = Literal["auto", "float32", "bfloat16", "fp8"]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")]


class CommandLineSettings(BaseModel):
    """Frozen settings whose fields are the flags of one command: `max_waiting` is `--max-waiting`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    program: ClassVar[str]
    summary: ClassVar[str]
    positional: ClassVar[str | None] = None

    def arguments(self) -> list[str]:
        """What differs from the defaults, as `parse_arguments` reads it back."""
        words = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if not field.is_required() and value == field.default:
                continue
            if name == self.positional:
                words.append(f"./{value}" if str(value).startswith("-") else str(value))
            elif value is True:
                words.append(flag(name))
            else:
                words.append(f"{flag(name)}={value!r}" if isinstance(value, float) else f"{flag(name)}={value}")
        return words

    @classmethod
    def parse_arguments(cls, argv: Sequence[str]) -> Self:
        """Settings from a command line. A bad one ends the process: exit code 2, one line with flag, value and rule."""
        parser = _Parser(prog=cls.program, description=cls.summary, allow_abbrev=False)
        for name, field in cls.model_fields.items():
            default = "" if field.is_required() or field.default is None else f" (default {field.default})"
            about = f"{field.description or ''}{default}".replace("%", "%%")
            if name == cls.positional:
                parser.add_argument(name, metavar=name.upper(), help=about)
            else:
                bare: dict[str, Any] = {"nargs": "?", "const": True} if field.annotation is bool else {}
                parser.add_argument(
                    flag(name),
                    dest=name,
                    metavar="VALUE",
                    help=about,
                    required=field.is_required(),
                    default=argparse.SUPPRESS,
                    **bare,
                )
        given = vars(parser.parse_args(list(argv)))
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            parser.error(cls._first_fault(error))

    @classmethod
    def _first_fault(cls, error: ValidationError) -> str:
        fault = error.errors(include_url=False, include_context=False)[0]
        rule = fault["msg"].removeprefix("Value error, ")
        if not fault["loc"]:
            return rule
        name = str(fault["loc"][0])
        where = name.upper() if name == cls.positional else flag(name)
        return f"{where} {fault['input']}: {rule[:1].lower()}{rule[1:]}"


def flag(field: str) -> str:
    """The flag of a field: `max_waiting` is `--max-waiting`."""
    return "--" + field.replace("_", "-")


class _Parser(argparse.ArgumentParser):
    """argparse, with a fault on one line and no usage above it."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message} (see {self.prog} --help)\n")
        raise SystemExit(2)


class WorkerSettings(CommandLineSettings):
    """What `m3-worker` takes."""

    program: ClassVar[str] = "m3-worker"
    summary: ClassVar[str] = "Serve a MiniMax-M3 checkpoint over an OpenAI-compatible HTTP API."

    model: Path | None = Field(
        None,
        description="directory of the checkpoint, or tiny for the trained model in the package; "
        "needed unless --simulate is given",
    )
    served_model_name: Text | None = Field(None, description="name that requests use (default: the directory's name)")
    host: Text = Field("127.0.0.1", description="address to listen on")
    port: int = Field(
        8000, ge=0, le=65535, description="port to listen on; 0 lets the system choose, and the log says which"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto is cuda where there is one")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto is the checkpoint's own")
    cache_dtype: CacheType = Field("auto", description="type of cached keys and values; auto is that of the weights")
    index_cache_dtype: CacheType = Field(
        "auto", description="type of cached index keys, which is what long contexts read most; auto is --cache-dtype"
    )
    max_context_tokens: Count | None = Field(
        None, description="longest prompt and answer together (default: the checkpoint's, as far as the cache holds it)"
    )
    max_concurrent: int = Field(64, ge=1, le=4096, description="most sequences in one step")
    step_tokens: int = Field(2048, ge=1, le=2**20, description="most tokens in one step, prefill and decode together")
    step_milliseconds: float | None = Field(
        None, gt=0, le=3_600_000, description="time that a step should take, by prediction (default: 100; 500 on cpu)"
    )
    step_deadline_seconds: float = Field(
        60.0, gt=0, le=86400, description="a step that takes longer makes the worker fail: it hangs"
    )
    redundant_experts: int | None = Field(
        None,
        ge=0,
        le=65536,
        description="slots for experts beyond one each, over all ranks (default: as few as ranks can share evenly)",
    )
    rank_join_seconds: float = Field(
        600.0, gt=0, le=86400, description="time that the ranks of a group get to find each other"
    )
    rank_silence_seconds: float = Field(
        10.0, ge=3, le=3600, description="a rank of which nothing is heard for longer makes the worker fail"
    )
    cache_tokens: Count | None = Field(
        None, description="tokens that the paged cache holds (default: what the device's memory allows; 65536 on cpu)"
    )
    host_cache_tokens: int = Field(
        0, ge=0, le=2**40, description="tokens of evicted pages that host memory keeps; 0 keeps none"
    )
    kv_events_zmq: Text | None = Field(
        None, description="ZeroMQ endpoint to publish KV events at in vLLM's form, tcp://127.0.0.1:5557 for instance"
    )
    kv_events_zmq_replay: Text | None = Field(
        None, description="ZeroMQ endpoint where missed KV events are asked for again; needs --kv-events-zmq"
    )
    max_waiting: int = Field(
        1024, ge=0, le=2**20, description="requests that may wait beside those running; more get 429"
    )
    max_body_bytes: int = Field(64 * 2**20, ge=1024, le=2**31, description="largest request body; more gets 413")
    drain_seconds: float = Field(30.0, ge=0, le=86400, description="time that running requests get after SIGTERM")
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads of torch (default: one for a tiny model, else torch's choice)"
    )
    allow_media_urls: bool = Field(
        False, description="fetch images and videos from http(s) URLs, of public addresses only; data: URLs always work"
    )
    max_media_items: int = Field(32, ge=0, le=4096, description="images and videos in one request")
    max_media_bytes: int = Field(32 * 2**20, ge=1024, le=2**31, description="largest file of an image or a video")
    max_image_pixels: int = Field(
        50_000_000, ge=784, le=2**31, description="width x height of the largest image, or frame of a video"
    )
    max_video_seconds: float = Field(600.0, gt=0, le=86400, description="longest video")
    media_seconds: float = Field(
        60.0, gt=0, le=3600, description="time to fetch one image or video, and as much to decode it"
    )
    media_memory_bytes: int = Field(
        2**30, ge=2**20, le=2**44, description="images and videos of all requests together, decoded; more get 429"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line logged")
    simulate: bool = Field(
        False, description="compute nothing: the same API and metrics over a latency model; --model then only names it"
    )
    simulate_prefill_tokens_per_second: float = Field(
        10_000.0,
        gt=0,
        le=1e9,
        description="speed of a simulated prefill; what the cache holds costs nothing",
    )
    simulate_token_seconds: float = Field(
        0.02, ge=0, le=60, description="time of a simulated step in which one sequence decodes"
    )
    simulate_load_factor: float = Field(
        0.01, ge=0, le=100, description="what each further decoding sequence adds to a step, as a share of that time"
    )
    simulate_answer_tokens: int = Field(
        64, ge=1, le=2**20, description="length of a simulated answer, unless the request allows less or demands more"
    )
    simulate_load_seconds: float = Field(0.0, ge=0, le=3600, description="time that simulated loading takes")

    @field_validator("model")
    @classmethod
    def _model_is_a_path(cls, value: Path | None) -> Path | None:
        return None if value is None else _without_nul(value)

    @model_validator(mode="after")
    def _simulation_is_whole(self) -> Self:
        if self.simulate:
            return self
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name.startswith("simulate_") and value != field.default:
                raise ValueError(f"{flag(name)} {value}: needs --simulate, without which nothing is simulated")
        if self.model is None:
            raise ValueError("--model is required: the directory of a checkpoint (or --simulate, which needs none)")
        return self

    @property
    def checkpoint(self) -> Path:
        """The directory to load from. Raises ValueError if there is none, as with --simulate."""
        if self.model is None:
            raise ValueError("there is no --model to load")
        return self.model

    @model_validator(mode="after")
    def _replay_has_events(self) -> Self:
        if self.kv_events_zmq_replay is not None and self.kv_events_zmq is None:
            raise ValueError(f"--kv-events-zmq-replay {self.kv_events_zmq_replay}: needs --kv-events-zmq")
        return self

    @property
    def model_name(self) -> str:
        """The name under which the model is served."""
        if self.served_model_name is not None:
            return self.served_model_name
        return "simulated" if self.model is None else self.model.resolve().name or "model"


class TinySettings(CommandLineSettings):
    """What `python -m m3_worker.tiny` takes: the shape of a random tiny checkpoint, with fields as M3 has them.

    There are as many index heads as KV heads, as in M3. With the defaults, attention is sparse beyond block x topk = 64
    tokens.
    """

    program: ClassVar[str] = "m3 tiny"
    summary: ClassVar[str] = "Write a random tiny MiniMax-M3 checkpoint in the official form."
    positional: ClassVar[str | None] = "directory"

    directory: Path = Field(description="where the checkpoint is written")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="seed of every weight")
    layers: int = Field(4, ge=1, le=256, description="layers, dense ones included")
    hidden: int = Field(64, ge=4, le=16384, description="width of the residual stream")
    heads: int = Field(8, ge=1, le=512, description="query heads")
    kv_heads: int = Field(2, ge=1, le=512, description="KV heads, which are the GQA groups")
    head_dim: int = Field(16, ge=4, le=512, multiple_of=4, description="width of a head; half of it is rotated")
    index_dim: int = Field(16, ge=4, le=512, multiple_of=4, description="width of an index key")
    experts: int = Field(8, ge=1, le=1024, description="routed experts of a layer")
    experts_per_token: int = Field(2, ge=1, le=64, description="routed experts that a token takes")
    intermediate: int = Field(64, ge=1, le=65536, description="width inside an expert")
    dense_layers: int = Field(1, ge=0, le=256, description="leading layers with dense attention and a dense MLP")
    block: int = Field(16, ge=1, le=1024, description="tokens of a sparse block")
    topk: int = Field(4, ge=1, le=65536, description="blocks that a query keeps")
    context: int = Field(8192, ge=1, le=2**24, description="max_position_embeddings")
    dtype: Literal["float32", "bfloat16", "mxfp8"] = Field("float32", description="type of the weights")
    vision: bool = Field(True, description="with a vision tower of two layers, for images and video")

    @field_validator("directory")
    @classmethod
    def _directory_is_a_path(cls, value: Path) -> Path:
        return _without_nul(value)

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        rules = {
            f"--heads {self.heads}: must be a multiple of --kv-heads {self.kv_heads}": self.heads % self.kv_heads == 0,
            f"--experts-per-token {self.experts_per_token}: must be at most --experts {self.experts}": (
                self.experts_per_token <= self.experts
            ),
            f"--dense-layers {self.dense_layers}: must be at most --layers {self.layers}": self.dense_layers
            <= self.layers,
            f"--index-dim {self.index_dim}: must be at least the {self.head_dim // 2} rotated dimensions of a head": (
                self.index_dim >= self.head_dim // 2
            ),
        }
        if self.dtype == "mxfp8":
            widths = {"--hidden": self.hidden, "--intermediate": self.intermediate}
            widths["--heads x --head-dim"] = self.heads * self.head_dim
            for name, width in widths.items():
                rules[f"{name} {width}: must be a multiple of 32 with --dtype mxfp8"] = width % 32 == 0
        for message, holds in rules.items():
            if not holds:
                raise ValueError(message)
        return self


class RankSettings(BaseModel):
    """Which rank of an expert-parallel group this process is, as the operator tells each of its pods."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node_rank: int = Field(0, ge=0)
    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(1, ge=0)
    local_rank: int = Field(0, ge=0)
    """Of the ranks of its node; the first starts the others."""
    master_address: str = "127.0.0.1"
    master_port: int = Field(29500, ge=1, le=65535)

    variables: ClassVar[Mapping[str, str]] = {
        "node_rank": "M3_NODE_RANK",
        "nodes": "M3_NODES",
        "gpus_per_node": "M3_GPUS_PER_NODE",
        "local_rank": "M3_LOCAL_RANK",
        "master_address": "MASTER_ADDR",
        "master_port": "MASTER_PORT",
    }

    @property
    def ranks_per_node(self) -> int:
        """One a GPU, and one where there are none."""
        return max(self.gpus_per_node, 1)

    @property
    def world_size(self) -> int:
        """Ranks of the group."""
        return self.nodes * self.ranks_per_node

    @property
    def rank(self) -> int:
        """This process, among all of the group."""
        return self.node_rank * self.ranks_per_node + self.local_rank

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the variables that are set. Raises ValueError, in one line with variable, value and rule."""
        given: dict[str, Any] = {
            field: environment[name] for field, name in cls.variables.items() if name in environment
        }
        try:
            settings = cls.model_validate(given)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_context=False)[0]
            raise ValueError(f"{cls.variables[str(fault['loc'][0])]}={fault['input']}: {fault['msg']}") from None
        if settings.node_rank >= settings.nodes:
            raise ValueError(f"M3_NODE_RANK={settings.node_rank}: must be below M3_NODES={settings.nodes}")
        if settings.local_rank >= settings.ranks_per_node:
            raise ValueError(
                f"M3_LOCAL_RANK={settings.local_rank}: must be below M3_GPUS_PER_NODE={settings.gpus_per_node}"
            )
        return settings


def _without_nul(value: Path) -> Path:
    if "\0" in str(value):
        raise ValueError("must not contain a NUL character")
    return value
