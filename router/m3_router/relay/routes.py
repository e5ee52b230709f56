"""What there is on the data port: paths, the checks that need no body, and the answers of the router's own.

Owns no exchange: all that goes to a worker is handed to `relay.Exchange`.
"""

from typing import Final
from urllib.parse import unquote_to_bytes

from m3_router.bodies.dialects import BY_PATH
from m3_router.errors import Refusal, bad_request, no_worker
from m3_router.http.messages import Application, Client, Request, Start
from m3_router.http.wire import request_id_lines
from m3_router.money.usage_report import UsageReport
from m3_router.relay.caller import Caller
from m3_router.relay.intake import open_bill
from m3_router.relay.models import ModelList
from m3_router.relay.relay import Exchange
from m3_router.relay.services import Services, is_request_id
from m3_router.tenants.tenants import Tenants

_USAGE: Final = b"/v1/usage"
_LOCAL: Final = frozenset({b"/health", b"/v1/models", _USAGE})
_MODELS_PREFIX: Final = b"/v1/models/"
_ANTHROPIC_PREFIX: Final = b"/v1/messages"


class Routes(Application):
    """The application behind the client's end."""

    def __init__(self, services: Services, tenants: Tenants, models: ModelList, usage: UsageReport) -> None:
        self._services = services
        self._tenants = tenants
        self._models = models
        self._usage = usage

    def accept(self, start: Start) -> Caller | None:
        """Path, method, request id, key and wishes; returns who asks. Raises Refusal (400, 401, 404, 405)."""
        path, method = start.path, start.method
        dialect = BY_PATH.get(path)
        if dialect is not None:
            if method != b"POST":
                raise _not_allowed(path, "POST")
        elif path in _LOCAL or path.startswith(_MODELS_PREFIX):
            if method not in (b"GET", b"HEAD"):
                raise _not_allowed(path, "GET, HEAD")
        else:
            raise Refusal(404, f"There is no {path.decode('latin-1')} here.", code="not_found")
        known = start.head.known
        if b"x-request-id" in known and not is_request_id(known[b"x-request-id"]):
            raise bad_request("x-request-id: expected 1 to 128 visible ASCII characters.", param="x-request-id")
        if path == b"/health":
            return None
        return Caller(self._tenants.identify(known), dialect, known)

    def serve(self, request: Request, connection: Client) -> None:
        """Answer a request whose head was accepted."""
        caller = request.context
        if not isinstance(caller, Caller):
            self._answer_health(connection)
            return
        if caller.tenant.version != self._tenants.version:
            # The table of keys has changed since this connection's first request: who asks is looked up again.
            try:
                caller = Caller(self._tenants.identify(request.head.known), caller.dialect, request.head.known)
            except Refusal as refusal:
                connection.refuse(refusal, self.refused(request, refusal))
                return
            request.context = caller
        if caller.dialect is not None:
            exchange = Exchange(self._services, request, connection, caller, caller.dialect)
            connection.exchange = exchange
            exchange.begin()
        elif request.path == b"/v1/models":
            connection.respond_json(self._models.all())
        elif request.path == _USAGE:
            try:
                connection.respond_json(self._usage.of_tenant(caller.tenant, request.query))
            except Refusal as refusal:
                connection.refuse(refusal)
        else:
            self._answer_model(request, connection)

    def refused(self, request: Request | None, refusal: Refusal) -> bytes:
        """Log what was refused before it could be served."""
        bill = open_bill(self._services, request)
        is_anthropic = request is not None and request.path.startswith(_ANTHROPIC_PREFIX)
        refusal.answer_to(bill.request_id, is_anthropic=is_anthropic)
        bill.status, bill.error = refusal.status, refusal.message
        self._services.ledger.settle(bill, "rejected", None)
        return request_id_lines(bill.request_id, is_anthropic=is_anthropic)

    def _answer_health(self, connection: Client) -> None:
        if self._services.pools.can_take_requests():
            connection.respond_json(b'{"status":"ok"}')
        else:
            connection.refuse(no_worker(", ".join(self._services.pools.models)))

    def _answer_model(self, request: Request, connection: Client) -> None:
        name = unquote_to_bytes(request.path[len(_MODELS_PREFIX) :]).decode("utf-8", "replace")
        try:
            self._services.pools.route(name)
        except Refusal as refusal:
            connection.refuse(refusal)
        else:
            connection.respond_json(self._models.one(name))


def _not_allowed(path: bytes, method: str) -> Refusal:
    return Refusal(405, f"{path.decode()} takes {method}.", code="method_not_allowed", allow=method)
