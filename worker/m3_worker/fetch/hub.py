"""The hub's HTTP API: what one commit of a repository holds, and the bytes of one of its files from any offset.

Two routes: `/api/models/REPO/revision/COMMIT?blobs=true` lists files with sizes and digests, and
`/REPO/resolve/COMMIT/FILE` has their bytes, often by way of a redirect to another host, which never sees the token.
Owns the translation of answers into errors; what passes is TransientError, what does not FetchError.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import TracebackType
from typing import Annotated, Self
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from m3_worker.config import FetchSettings
from m3_worker.fetch.errors import FetchError, TransientError

_CHUNK_BYTES = 2**20
_TIMEOUT = httpx.Timeout(30.0)
_PASSING = (408, 425, 429)


@dataclass(frozen=True)
class HubFile:
    """One file of a commit, as the hub announces it."""

    name: str
    """Relative path, with slashes."""
    size_bytes: int
    digest: str
    is_large: bool
    """Large files are known by the SHA-256 of their content, others by git's SHA-1 of it."""

    def hasher(self) -> "hashlib._Hash":
        """What the content is to be fed to, for a digest to compare with."""
        if self.is_large:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size_bytes}\0".encode(), usedforsecurity=False)


class _Wire(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="ignore")


class _Large(_Wire):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Sibling(_Wire):
    rfilename: str
    size: Annotated[int, Field(ge=0)]
    blob_id: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    lfs: _Large | None = None


class _Listing(_Wire):
    sha: str
    siblings: tuple[_Sibling, ...]


class Hub:
    """One hub, asked for one commit of one repository. A context manager; safe to use from several threads."""

    def __init__(self, settings: FetchSettings, token: str | None) -> None:
        self._settings = settings
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=_TIMEOUT,
            limits=httpx.Limits(max_connections=settings.threads),
            follow_redirects=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def files(self) -> tuple[HubFile, ...]:
        """All files of the commit. Raises FetchError and TransientError."""
        settings = self._settings
        with self._get(f"/api/models/{settings.repo}/revision/{settings.revision}?blobs=true") as answer:
            try:
                listing = _Listing.model_validate_json(answer.read())
            except httpx.TransportError as error:
                raise TransientError(f"{settings.endpoint}: {_words(error)}") from None
            except ValidationError as error:
                fault = error.errors(include_url=False, include_context=False)[0]
                where = ".".join(str(part) for part in fault["loc"])
                raise FetchError(
                    "HubUnreachable", f"{answer.url}: not a hub's answer ({where}: {fault['msg']})"
                ) from None
        if listing.sha != settings.revision:
            raise FetchError("RepositoryNotFound", f"{settings.revision} is no commit of {settings.repo}")
        return tuple(_file(sibling) for sibling in listing.siblings)

    @contextmanager
    def content(self, file: HubFile, start: int) -> Iterator[Iterator[bytes]]:
        """The bytes of a file from `start` on, in pieces. Raises FetchError and TransientError, also while reading."""
        settings = self._settings
        path = f"/{settings.repo}/resolve/{settings.revision}/{quote(file.name)}"
        # Compressed, the bytes on the wire would not be those that offsets count.
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        with self._get(path, headers) as answer:
            if start and answer.status_code != httpx.codes.PARTIAL_CONTENT:
                raise FetchError("HubUnreachable", f"{answer.url.host} does not send parts of a file")
            yield self._pieces(answer)

    def _pieces(self, answer: httpx.Response) -> Iterator[bytes]:
        try:
            yield from answer.iter_bytes(_CHUNK_BYTES)
        except httpx.TransportError as error:
            raise TransientError(f"{answer.url.host}: {_words(error)}") from None

    @contextmanager
    def _get(self, path: str, headers: dict[str, str] | None = None) -> Iterator[httpx.Response]:
        url = self._settings.endpoint.rstrip("/") + path
        try:
            answer = self._client.send(self._client.build_request("GET", url, headers=headers), stream=True)
        except httpx.TransportError as error:
            raise TransientError(f"{self._settings.endpoint}: {_words(error)}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise FetchError("HubUnreachable", f"{self._settings.endpoint}: {_words(error)}") from None
        try:
            self._refuse(answer)
            yield answer
        finally:
            answer.close()

    def _refuse(self, answer: httpx.Response) -> None:
        status, settings = answer.status_code, self._settings
        if status < 300:
            return
        where = f"{settings.endpoint} answers {status} for {settings.repo} at {settings.revision}"
        if status in _PASSING or status >= 500:
            raise TransientError(where)
        code = answer.headers.get("x-error-code", "")
        if code == "GatedRepo":
            raise FetchError(
                "RepositoryForbidden", f"{where}: it is gated; accept its terms with the account whose token is used"
            )
        if status in (401, 403):  # a hub does not tell a private repository from one that is not there
            raise FetchError(
                "RepositoryForbidden",
                f"{where}: there is no such repository, or the token, if there is one, may not read it",
            )
        if status == 404:
            what = "no such commit" if code == "RevisionNotFound" else "no such repository, commit or file"
            raise FetchError("RepositoryNotFound", f"{where}: {what}")
        raise FetchError("HubUnreachable", where)


def _file(sibling: _Sibling) -> HubFile:
    """Raises FetchError for a name that would leave the directory, or be one of ours."""
    path = PurePosixPath(sibling.rfilename)
    is_plain = sibling.rfilename == str(path) and not path.is_absolute() and not {"..", "."} & {*path.parts}
    if not is_plain or "\0" in sibling.rfilename or "\\" in sibling.rfilename:
        raise FetchError(
            "DownloadCorrupt", f"the hub names a file {sibling.rfilename!r}, which is no path in a directory"
        )
    return HubFile(
        name=sibling.rfilename,
        size_bytes=sibling.size,
        digest=sibling.lfs.sha256 if sibling.lfs else sibling.blob_id,
        is_large=sibling.lfs is not None,
    )


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
