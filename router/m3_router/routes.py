"""What there is on the data port: paths, the checks that need no body, and the answers of the router's own.

Owns no exchange: all that goes to a worker is handed to `relay.Exchange`.
"""

from typing import Final
from urllib.parse import unquote_to_bytes

from m3_router.errors import Refusal, bad_request, no_worker
from m3_router.http.messages import Client, Request, Start
from m3_router.lanes import Ticket
from m3_router.models import ModelList
from m3_router.relay import FREE, RELAYED, Exchange, Services, is_request_id, open_bill
from m3_router.tenants import Tenant, Tenants

_LOCAL: Final = frozenset({b"/health", b"/v1/models"})
_MODELS_PREFIX: Final = b"/v1/models/"


class Routes:
    """The application behind the client's end."""

    def __init__(self, services: Services, tenants: Tenants, models: ModelList) -> None:
        self._services = services
        self._tenants = tenants
        self._models = models

    def accept(self, start: Start) -> Tenant | None:
        """Path, method, request id and key; returns the tenant. Raises Refusal (400, 401, 404, 405)."""
        path, method = start.path, start.method
        if path in RELAYED:
            if method != b"POST":
                raise _not_allowed(path, "POST")
        elif path in _LOCAL or path.startswith(_MODELS_PREFIX):
            if method not in (b"GET", b"HEAD"):
                raise _not_allowed(path, "GET")
        else:
            raise Refusal(404, f"There is no {path.decode('latin-1')} here.", code="not_found")
        known = start.head.known
        if b"x-request-id" in known and not is_request_id(known[b"x-request-id"]):
            raise bad_request("x-request-id: expected 1 to 128 visible ASCII characters.", param="x-request-id")
        return None if path == b"/health" else self._tenants.identify(known.get(b"authorization"))

    def serve(self, request: Request, connection: Client) -> None:
        """Answer a request whose head was accepted."""
        if request.path in RELAYED:
            exchange = Exchange(self._services, request, connection, is_free=request.path in FREE)
            connection.exchange = exchange
            exchange.begin()
        elif request.path == b"/health":
            if self._services.pools.has_ready_worker():
                connection.respond_json(b'{"status":"ok"}')
            else:
                connection.refuse(no_worker(", ".join(self._services.pools.models)))
        elif request.path == b"/v1/models":
            connection.respond_json(self._models.all)
        else:
            self._answer_model(request, connection)

    def refused(self, request: Request | None, refusal: Refusal) -> bytes:
        """Log what was refused before it could be served."""
        bill = open_bill(self._services, request)
        bill.status, bill.error = refusal.status, refusal.message
        self._services.ledger.settle(bill, "rejected", None)
        return b"x-request-id: %b\r\n" % bill.request_id.encode()

    def tick(self, now: float) -> None:
        """Time has passed for those who wait in lanes."""
        for pool in self._services.pools:
            expired, admitted = pool.lanes.tick(now)
            for ticket in expired:
                _exchange(ticket).expired(pool.lanes.retry_after_seconds(ticket.lane, now))
            self._services.wake(admitted)

    def _answer_model(self, request: Request, connection: Client) -> None:
        name = unquote_to_bytes(request.path[len(_MODELS_PREFIX) :]).decode("utf-8", "replace")
        try:
            self._services.pools.of_model(name)
        except Refusal as refusal:
            connection.refuse(refusal)
        else:
            connection.respond_json(self._models.one(name))


def _not_allowed(path: bytes, method: str) -> Refusal:
    return Refusal(405, f"{path.decode()} takes {method}.", code="method_not_allowed")


def _exchange(ticket: Ticket) -> Exchange:
    if not isinstance(ticket.holder, Exchange):
        raise TypeError(f"{ticket!r} is held by {ticket.holder!r}, not by an exchange")
    return ticket.holder
