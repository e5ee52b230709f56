"""A client's request, and what connection, application and exchange promise each other."""

from typing import TYPE_CHECKING, Protocol

from m3_router.errors import Refusal
from m3_router.http.wire import Head

if TYPE_CHECKING:
    from m3_router.http.client_end import ClientConnection


class Request:
    """One request, complete once its body is."""

    __slots__ = (
        "body",
        "chunks",
        "context",
        "head",
        "is_http_1_0",
        "keep_alive",
        "method",
        "path",
        "query",
        "refusal",
        "size",
    )

    def __init__(self, method: bytes, target: bytes, head: Head, is_http_1_0: bool, keep_alive: bool) -> None:
        self.method = method
        self.path, _, self.query = target.partition(b"?")
        self.head = head
        self.is_http_1_0 = is_http_1_0
        self.keep_alive = keep_alive
        self.chunks: list[bytes] = []
        self.size = 0
        self.body = b""
        self.refusal: Refusal | None = None  # decided before its end: the body is dropped, this is the answer
        self.context: object = None  # the application's, from accept_head to serve


class Exchange(Protocol):
    """One request being answered. After `client_lost` it must not touch the connection again."""

    def client_lost(self) -> None:
        """The client is gone."""

    def client_paused(self) -> None:
        """The client reads more slowly than we write: write no more than what is on its way."""

    def client_resumed(self) -> None:
        """It has caught up."""

    def tick(self, now: float) -> None:
        """Time has passed."""

    def interrupt(self) -> None:
        """End now: the server stops."""


class Application(Protocol):
    """What the bytes are for."""

    def accept_head(self, request: Request) -> None:
        """Look at method, path and headers. Raises Refusal: then the body is dropped and that is the answer."""

    def serve(self, request: Request, connection: "ClientConnection") -> None:
        """Answer a complete request, now or later."""

    def refused(self, request: Request | None, refusal: Refusal) -> bytes:
        """Told of an answer that is given without `serve`; returns header lines for it."""
        ...
