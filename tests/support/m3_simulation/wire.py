"""What lies between the operator and the API server: requests that take time, fail, or are done although nobody knows.

Stands in for the official client and for the thread pool under the real `Cluster`, so that every line of it runs: a
request is performed at some moment of virtual time, and its answer arrives at a later one, or never.
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any, ParamSpec, TypeVar

from m3_operator.resources import RESOURCES
from m3_simulation.api_server import ApiServer, ApiStatusError, Manifest
from m3_simulation.history import History
from m3_simulation.virtual_time import Clock

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_KINDS = {(resource.api_version, resource.plural): kind for kind, resource in RESOURCES.items()}
_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Request:
    """One request of the operator, read."""

    method: str
    kind: str
    namespace: str
    name: str
    subresource: str
    query: Mapping[str, str]
    body: Mapping[str, Any]
    is_merge: bool = False  # a strategic merge patch, not an apply

    @property
    def is_write(self) -> bool:
        """Whether it is there to change something, Events (which are for people) left aside."""
        return self.method != "GET" and self.kind != "Event" and "dryRun" not in self.query

    def __str__(self) -> str:
        what = f"{self.kind}/{self.subresource}" if self.subresource else self.kind
        return f"{self.method} {what} {self.name or self.body.get('metadata', {}).get('name', '')}"


@dataclass
class Weather:
    """How well requests fare now; faults change it."""

    slowest_seconds: float = 0.04
    failing_share: float = 0.0  # of requests that meet one of the failures below
    failures: tuple[str, ...] = ()  # of: 409 410 429 500 before after late


@dataclass
class Network(Executor):
    """Performs each request later, in virtual time. `is_alive` says whether the asker still lives."""

    clock: Clock
    random: Random
    weather: Weather
    is_alive: Callable[[], bool]

    def submit(
        self, fn: Callable[_Parameters, _Result], /, *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> Future[_Result]:
        """A future that is set when the answer has arrived."""
        future: Future[_Result] = Future()
        future.set_running_or_notify_cancel()

        def perform() -> None:
            if not self.is_alive() and self.random.random() < 0.5:
                return  # it died before the request had left
            try:
                answer = fn(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the asker's
                self.clock.after(self._delay(), future.set_exception, error)
            else:
                self.clock.after(self._delay(), future.set_result, answer)

        self.clock.after(self._delay(), perform)
        return future

    def _delay(self) -> float:
        return self.random.uniform(0.001, self.weather.slowest_seconds)


@dataclass
class Client:
    """Stands in for `kubernetes.client.ApiClient`: HTTP in, the model's verbs out."""

    server: ApiServer
    clock: Clock
    random: Random
    history: History
    weather: Weather
    actor: str
    before_write: Callable[[Request], None]
    after_write: Callable[[Request, Manifest | None, Manifest | None], None]  # what was there, what is there now
    told: Callable[[Manifest], None]  # an object that the operator gets to see in an answer
    on_late: Callable[[Request], None]  # a request was done that its maker had given up
    tamper: Callable[[Request], Request] = lambda request: request  # a planted bug
    absent_kinds: frozenset[str] = frozenset()
    writes: int = 0
    _given_up: set[int] = field(default_factory=set)

    def param_serialize(
        self,
        method: str,
        resource_path: str,
        query_params: Any = (),
        header_params: Any = None,
        auth_settings: Any = (),
    ) -> tuple[str, tuple[str, dict[str, str]], Any]:
        """As the official client's: what `call_api` wants."""
        return method, (resource_path, dict(query_params)), header_params

    def call_api(
        self, method: str, url: tuple[str, dict[str, str]], headers: Any, body: Any = None, _request_timeout: float = 0
    ) -> Any:
        """Perform one request, or fail it in one of the ways in which requests fail. Raises OSError."""
        parsed = json.loads(body) if isinstance(body, str) else json.loads(json.dumps(body or {}))
        request = self.tamper(_parse(method, url, parsed, str((headers or {}).get("Content-Type", ""))))
        failure = self._failure()
        if failure is None:
            return _answer(*self._handle(request, is_late=False))
        self.history.faults[f"API {failure}"] += 1
        self.history.add(self.clock.seconds, "fault", f"{self.actor}: {request} meets {failure}")
        if failure == "before":
            raise OSError("connection refused")
        if failure == "after":
            self._handle(request, is_late=False, is_told=False)
            raise OSError("connection reset by peer")
        if failure == "late":
            self.clock.after(self.random.uniform(1.0, 60.0), self._do_late, request)
            raise OSError(f"timed out after {_TIMEOUT_SECONDS} s")
        return _answer(int(failure), {"message": f"simulated {failure}"})

    def _failure(self) -> str | None:
        weather = self.weather
        if not weather.failures or self.random.random() >= weather.failing_share:
            return None
        return self.random.choice(weather.failures)

    def _do_late(self, request: Request) -> None:
        self.history.add(self.clock.seconds, "fault", f"{self.actor}: {request} is done late")
        self.on_late(request)
        self._handle(request, is_late=True)

    def _handle(self, request: Request, *, is_late: bool, is_told: bool = True) -> tuple[int, Any]:
        server = self.server
        if request.kind in self.absent_kinds:
            return 404, {"message": "the server could not find the requested resource"}
        if request.kind == "Event":
            return 200, request.body
        name = request.name or request.body.get("metadata", {}).get("name", "")
        identity = (request.kind, request.namespace, name)
        before = server.objects.get(identity)
        if request.is_write and not is_late:
            self.before_write(request)
            self.writes += 1
        try:
            answer = self._perform(request, identity, is_late=is_late)
        except ApiStatusError as error:
            self.history.add(self.clock.seconds, self.actor, f"{request}: {error.code}")
            return error.code, {"message": str(error)}
        if request.is_write and not is_late:
            self.after_write(request, before, server.objects.get(identity))
        # Who asks for one object wants to know whose it is, and keeps nothing of it.
        is_kept = request.method != "GET" or not (request.name or "fieldSelector" in request.query)
        if is_told and is_kept and not is_late and isinstance(answer, dict):
            # A list says also what is not there any more.
            gone = server.gone.get(request.kind, ()) if "items" in answer else ()
            for found in (*answer.get("items", [answer]), *gone):
                self.told(found)
        return 200, answer if answer is not None else {"kind": "Status", "status": "Success"}

    def _perform(self, request: Request, identity: tuple[str, str, str], *, is_late: bool) -> Any:
        server, actor = self.server, f"{self.actor} late" if is_late else self.actor
        if request.method == "GET" and request.name:
            return server.get(*identity)
        if request.method == "GET":
            selector = request.query.get("labelSelector", "")
            found = server.of_kind(request.kind, request.namespace or None, selector)
            if (field := request.query.get("fieldSelector")) is not None:
                found = [one for one in found if one["metadata"]["name"] == field.removeprefix("metadata.name=")]
            return {"items": found, "metadata": {"resourceVersion": str(server.version)}}
        if request.method == "POST":
            return server.create(request.body, actor, is_dry_run="dryRun" in request.query)
        if request.method == "PATCH" and request.is_merge:
            return server.open_gates(identity, request.body, actor)
        if request.method == "PATCH":
            write = server.apply_status if request.subresource == "status" else server.apply
            return write(request.body, actor)
        given = {"preconditions": request.body.get("preconditions"), "grace": request.body.get("gracePeriodSeconds")}
        return server.delete(identity, actor, **given, is_late=is_late)


def _parse(method: str, url: tuple[str, dict[str, str]], body: Mapping[str, Any], content_type: str) -> Request:
    path, query = url
    parts = path.strip("/").split("/")
    version = parts[1] if parts[0] == "api" else "/".join(parts[1:3])
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    plural, name, subresource = (*rest, "", "")[:3]
    return Request(
        method, _KINDS[version, plural], namespace, name, subresource, query, body, "merge-patch" in content_type
    )


def _answer(status: int, document: Any) -> Any:
    data = json.dumps(document).encode()
    return SimpleNamespace(status=status, response=SimpleNamespace(data=data))
