"""A client's request, a worker's answer, and what connection, application and exchange promise each other."""

from abc import abstractmethod

from mypy_extensions import mypyc_attr, trait

from m3_router.errors import Refusal
from m3_router.http.wire import Head, Headers


class Start:
    """All of a request that comes before its body, but for the body's length.

    Clients that keep a connection send the same again and again; what was read and accepted once holds for equal bytes.
    """

    __slots__ = (
        "context",
        "head",
        "headers",
        "is_http_1_0",
        "keep_alive",
        "method",
        "path",
        "path_text",
        "post_line",
        "query",
        "target",
    )

    def __init__(
        self, method: bytes, target: bytes, headers: Headers, head: Head, *, is_http_1_0: bool, keep_alive: bool
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.head = head
        self.is_http_1_0 = is_http_1_0
        self.keep_alive = keep_alive
        self.path, _, query = target.partition(b"?")
        self.query = query.decode("latin-1")
        self.path_text = self.path.decode("latin-1")
        self.post_line = b"POST " + target + b" HTTP/1.1\r\n"  # how the request goes on to a worker
        self.context: object = None  # what the application has made of it


@mypyc_attr(free_list_len=1)
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
        "path_text",
        "post_line",
        "query",
        "refusal",
        "size",
    )

    def __init__(self, start: "Start") -> None:
        self.method = start.method
        self.path = start.path
        self.path_text = start.path_text
        self.post_line = start.post_line
        self.query = start.query
        self.head = start.head
        self.is_http_1_0 = start.is_http_1_0
        self.keep_alive = start.keep_alive
        self.context: object = start.context  # the application's, from accept_head to serve
        self.refusal: Refusal | None = None  # decided before its end: the body is dropped, this is the answer
        self.chunks: list[bytes] = []
        self.size = 0
        self.body = b""


class Answer:
    """The head of a worker's answer."""

    __slots__ = ("head", "status")

    def __init__(self, status: int, head: Head) -> None:
        self.status = status
        self.head = head


@mypyc_attr(allow_interpreted_subclasses=True)
class Exchange:
    """One request being answered. After `client_lost` it must not touch the connection again."""

    __slots__ = ()

    @abstractmethod
    def client_lost(self) -> None:
        """The client is gone."""

    @abstractmethod
    def client_paused(self) -> None:
        """The client reads more slowly than we write: write no more than what is on its way."""

    @abstractmethod
    def client_resumed(self) -> None:
        """It has caught up."""

    @abstractmethod
    def tick(self, now: float) -> None:
        """Time has passed."""

    @abstractmethod
    def interrupt(self) -> None:
        """End now: the server stops."""


@trait
class Client:
    """Who asked, as application and exchange see the connection. Each answer goes one of two ways:

    `respond` (or `refuse`, `respond_json`) at once, or `start_response`, any number of `write`, then `end` or `cut`.
    """

    exchange: Exchange | None  # to be told what happens, set by the application

    @property
    @abstractmethod
    def is_write_paused(self) -> bool:
        """Whether the client reads more slowly than we write."""

    @abstractmethod
    def respond(self, head: bytes, body: bytes) -> None:
        """Write a whole answer: status and header lines (none of them about framing), and the body."""

    @abstractmethod
    def respond_json(self, body: bytes) -> None:
        """Answer 200 with a JSON body of our own."""

    @abstractmethod
    def refuse(self, refusal: Refusal, headers: bytes = b"") -> None:
        """Answer with a refusal. `headers` are whole lines."""

    @abstractmethod
    def start_response(self, head: bytes, body: bytes = b"") -> None:
        """Write status and header lines, and the beginning of a body; `write` and `end` follow."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """More of a body that was begun without its length."""

    @abstractmethod
    def end(self, data: bytes = b"") -> None:
        """The last of such a body."""

    @abstractmethod
    def cut(self, data: bytes = b"") -> None:
        """End such a body so that the client sees that it is incomplete: without a last chunk, and closed."""

    @abstractmethod
    def abort(self) -> None:
        """Close at once; the exchange is told that its client is lost."""

    @abstractmethod
    def release_body(self) -> None:
        """The request's body will not be needed again."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Application:
    """What the bytes are for."""

    __slots__ = ()

    @abstractmethod
    def accept(self, start: Start) -> object:
        """Look at method, path and headers; returns the request's `context`, the same for an equal start.

        Raises Refusal: then the body is dropped, and that is the answer.
        """

    @abstractmethod
    def serve(self, request: Request, connection: Client) -> None:
        """Answer a complete request, now or later."""

    @abstractmethod
    def refused(self, request: Request | None, refusal: Refusal) -> bytes:
        """Told of an answer that is given without `serve`; returns header lines for it."""
