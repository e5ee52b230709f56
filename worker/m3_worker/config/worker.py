"""What `m3-worker` takes: every field is one flag, with its bounds and its help."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from m3_worker.config.command_line import CommandLineSettings, flag, without_nul

Count = Annotated[int, Field(ge=1, le=2**31)]
CacheType = Literal["auto", "float32", "bfloat16", "fp8"]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")]


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
    expert_plan: Path | None = Field(
        None,
        description="file with the plan of experts to begin with, as PUT /internal/expert-plan takes it; "
        "where there is none, or it is of another shape, experts are in order",
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
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of torch (default: torch's choice)")
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
        return None if value is None else without_nul(value)

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
