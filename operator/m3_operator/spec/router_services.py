"""What a router works with beside its workers: Redis, the ledger's files, hooks, and its admin port."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from m3_operator.spec.fragments import DnsSubdomain, Model, Quantity, cel, require
from m3_operator.spec.secrets import SecretKey
from m3_operator.spec.traffic import Seconds
from m3_operator.spec.upstreams import HttpUrl

ONE_URL = "redis: set exactly one of url, urlSecretRef"


class Redis(Model):
    """Where the replicas of a router meet. Nothing on the way of a request waits for it."""

    model_config = ConfigDict(json_schema_extra=cel(("has(self.url) != has(self.urlSecretRef)", ONE_URL)))

    url: Annotated[str, StringConstraints(pattern=r"^(redis|rediss)://[^\s]+$", max_length=1024)] | None = None
    """redis://HOST:PORT/DB, or rediss:// for TLS; without a password."""
    url_secret_ref: SecretKey | None = None
    """Entry of a Secret with the URL, which may then hold a password. Read when a router starts."""
    password_secret_ref: SecretKey | None = None
    """Its password."""
    key_prefix: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", max_length=128)] = "m3"
    """What the names of its keys begin with: routers with one prefix share quotas, prefixes and usage."""
    call_seconds: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Longest time that one call may take."""

    @model_validator(mode="after")
    def _has_one_url(self) -> Self:
        require((self.url is None) != (self.url_secret_ref is None), ONE_URL)
        return self


CLAIM_NAME = "ledger.claimName is for ledger.storage Claim, which needs it"


class Ledger(Model):
    """Where bills are kept until they are settled and Redis has them."""

    model_config = ConfigDict(
        json_schema_extra=cel(("(self.storage == 'Claim') == has(self.claimName)", CLAIM_NAME)),
    )

    storage: Literal["None", "EmptyDir", "Claim"] = "None"
    """None: bills are in the request log alone; EmptyDir: they outlive the process, not the pod; Claim: a
    PersistentVolumeClaim, which several routers share if it is ReadWriteMany, each in a directory of its pod's name."""
    claim_name: DnsSubdomain | None = None
    """The claim."""
    size_limit: Quantity | None = None
    """Size of the EmptyDir; absent: the node's disk. It should hold retainSegments files of segmentBytes."""
    segment_bytes: Annotated[int, Field(ge=2**16, le=2**30)] = 16_777_216
    """Size of one file."""
    retain_segments: Annotated[int, Field(ge=2, le=10_000)] = 64
    """Settled files that are kept, for export."""
    stream_entries: Annotated[int, Field(ge=100, le=10_000_000)] = 10_000
    """Entries of about 128 KiB of bills that are kept in Redis."""

    @model_validator(mode="after")
    def _names_its_claim(self) -> Self:
        require((self.storage == "Claim") == (self.claim_name is not None), CLAIM_NAME)
        return self


class Moderation(Model):
    """A service that is asked about texts: POST {"model", "stage", "input"}, answered by {"flagged", "reason"}."""

    url: HttpUrl
    """Its URL."""
    api_key_secret_ref: SecretKey | None = None
    """Key that it wants."""
    stages: Annotated[
        tuple[Literal["request", "response"], ...],
        Field(min_length=1, max_length=2, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ("request",)
    """Whether it is asked about requests, responses or both."""
    timeout_seconds: Seconds = 2
    """How long its answer is waited for."""
    on_failure: Literal["refuse", "allow"] = "refuse"
    """What holds when it does not answer."""
    max_text_bytes: Annotated[int, Field(ge=1024, le=67_108_864)] = 1_048_576
    """Most of a text that is sent; of a longer one its end."""


class Tracing(Model):
    """OpenTelemetry spans of requests, over OTLP/HTTP."""

    endpoint: HttpUrl
    """URL of the collector."""
    sample_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the requests that come without a traceparent; one that comes decides for itself."""


class Admin(Model):
    """The port of the console, the metrics and the admin API."""

    key_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$", max_length=64)] | None = None
    """SHA-256 digest of the key that opens it; absent: beyond the pod it answers probes and /metrics alone."""
    service_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port of the Service that leads to it; absent: it is reached by the pods' addresses alone."""
