"""What is downloaded, and into which cache: what `python -m m3_worker.fetch` takes."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from m3_worker.config.command_line import CommandLineSettings, without_nul

HUB = "https://huggingface.co"
Repository = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=192)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Endpoint = Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$", max_length=512)]


class FetchSettings(CommandLineSettings):
    """One commit of one repository, and the cache that it belongs into. A token is read from HF_TOKEN, never a flag."""

    program: ClassVar[str] = "m3-fetch"
    summary: ClassVar[str] = "Download one commit of a model from a Hugging Face hub into a cache, once."

    repo: Repository = Field(description="repository of the model, as organization/name")
    revision: Commit = Field(description="commit to download, in full: a branch may be another model tomorrow")
    cache: Path = Field(description="root of the cache; the model lies in a directory below, named by its commit")
    endpoint: Endpoint = Field(HUB, description="where the hub's API is")
    host: str = Field("127.0.0.1", min_length=1, description="address of the page that tells of the progress")
    port: int = Field(8000, ge=0, le=65535, description="its port; 0 lets the system choose, and the log says which")
    threads: int = Field(8, ge=1, le=64, description="files that are downloaded at once")
    message_file: Path | None = Field(None, description="file for the cause of a failure, in one line")

    @field_validator("cache", "message_file")
    @classmethod
    def _is_a_path(cls, value: Path | None) -> Path | None:
        return None if value is None else without_nul(value)

    def directory(self) -> Path:
        """Where the model lies when it is complete."""
        return self.cache / cached_at(self.repo, self.revision)


def cached_at(repo: str, revision: str) -> str:
    """Where a cache has one commit of a repository, relative to its root."""
    return f"{repo.replace('/', '--')}/{revision}"
